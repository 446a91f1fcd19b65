// [LTS, UTE] per key column in, the mask in the forms of other consumers out, a launch each.
//
//   four_columns   [LTS, total, 0, UTE]: the rows from LTS up to total and from 0 up to UTE are
//                  masked. A thread a column; moves 8 * N bytes in, 16 * N out.
//   dense_mask     one byte a pair, 1 where row >= UTE and row < LTS. A thread has four neighbouring
//                  columns for rows_per_block rows, so that bounds are read once for all of them;
//                  moves Q * N bytes out.
//
//     column  0  1  2          four columns, total 3            dense
//     LTS     3  3  2          3 3 0 0   3 3 0 1   2 3 0 1      row 0   1  0  0
//     UTE     0  1  1                                           row 1   1  1  1
//                                                               row 2   1  1  0

#ifndef BLOCK_THREADS
#error "BLOCK_THREADS: threads of a block"
#endif

extern "C" __global__ __launch_bounds__(BLOCK_THREADS) void four_columns(
    const int2* columns,  // (column_num,) of (LTS, UTE)
    unsigned column_num,  // in [1, INT32_MAX]
    int total,
    int4* four)           // (column_num,)
{
    unsigned column = blockIdx.x * BLOCK_THREADS + threadIdx.x;
    if (column >= column_num) return;
    int2 bounds = columns[column];
    four[column] = make_int4(bounds.x, total, 0, bounds.y);
}

extern "C" __global__ __launch_bounds__(BLOCK_THREADS) void dense_mask(
    const int2* columns,      // (column_num,) of (LTS, UTE)
    unsigned column_num,      // in [1, INT32_MAX]
    unsigned row_num,         // in [1, INT32_MAX]
    unsigned rows_per_block,
    unsigned blocks_a_row,    // blocks side by side, of 4 * BLOCK_THREADS columns each
    unsigned char* shown)     // (row_num, column_num)
{
    unsigned column = 4 * (blockIdx.x % blocks_a_row * BLOCK_THREADS + threadIdx.x);
    if (column >= column_num) return;
    unsigned in_row = min(4u, column_num - column);
    int2 bounds[4];
    for (unsigned i = 0; i < 4; ++i) bounds[i] = columns[column + min(i, in_row - 1)];

    unsigned first_row = blockIdx.x / blocks_a_row * rows_per_block;
    unsigned row_end = min(first_row + rows_per_block, row_num);
    unsigned char* at = shown + (unsigned long long)first_row * column_num + column;
    for (unsigned row = first_row; row < row_end; ++row, at += column_num) {
        unsigned bytes = 0;
        for (unsigned i = 0; i < 4; ++i)
            bytes |= (unsigned)((int)row >= bounds[i].y && (int)row < bounds[i].x) << 8 * i;
        if (in_row == 4 && reinterpret_cast<unsigned long long>(at) % 4 == 0)
            *reinterpret_cast<unsigned*>(at) = bytes;
        else
            for (unsigned i = 0; i < in_row; ++i) at[i] = (unsigned char)(bytes >> 8 * i);
    }
}
