// [LTS, UTE] per key column in, the mask in the forms of other consumers out, a launch each.
//
//   four_columns   [LTS, total, 0, UTE]: the rows from LTS up to total and from 0 up to UTE are
//                  masked. A thread a column; moves 8 * N bytes in, 16 * N out.
//   split_columns  the same bounds in the rows of one of b equal parts of the pack, [0, Q / b]. A
//                  thread two columns, 16 bytes; moves 8 * N bytes in and out.
//   dense_mask     one byte a pair, 1 where row >= UTE and row < LTS. A thread has four neighbouring
//                  columns for rows_per_block rows, so that bounds are read once for all of them;
//                  moves Q * N bytes out. Of several slices, those of one follow the other's.
//
//     column  0  1  2          four columns, total 3            dense
//     LTS     3  3  2          3 3 0 0   3 3 0 1   2 3 0 1      row 0   1  0  0
//     UTE     0  1  1                                           row 1   1  1  1
//                                                               row 2   1  1  0

#include "columns.cuh"

#ifndef BLOCK_THREADS
#error "BLOCK_THREADS: threads of a block"
#endif

extern "C" __global__ __launch_bounds__(BLOCK_THREADS) void four_columns(
    const int2* columns,            // (column_num,) of (LTS, UTE)
    unsigned long long column_num,  // at least 1, of all slices
    int total,
    int4* four)                     // (column_num,)
{
    unsigned long long column = (unsigned long long)blockIdx.x * BLOCK_THREADS + threadIdx.x;
    if (column >= column_num) return;
    int2 bounds = columns[column];
    four[column] = make_int4(bounds.x, total, 0, bounds.y);
}

// A column's bounds in the rows of its own part.
__device__ int2 in_part(int2 bounds, unsigned column, unsigned part_columns, unsigned part_rows)
{
    long long first_row = (long long)(column / part_columns) * part_rows;
    return make_int2(
        (int)min(max(bounds.x - first_row, 0LL), (long long)part_rows),
        (int)min(max(bounds.y - first_row, 0LL), (long long)part_rows));
}

extern "C" __global__ __launch_bounds__(BLOCK_THREADS) void split_columns(
    const int2* columns,    // (column_num,) of (LTS, UTE)
    unsigned column_num,    // in [1, INT32_MAX]
    unsigned part_columns,  // of each part, in [1, column_num]
    unsigned part_rows,
    int2* parts)            // (column_num,)
{
    unsigned lead = column_lead(parts);
    unsigned column = 2 * (blockIdx.x * BLOCK_THREADS + threadIdx.x) - lead;  // -1 in front of a half pair
    unsigned next = column + 1;
    bool has_first = column < column_num, has_next = next < column_num;
    int2 first = {}, second = {};
    if (has_first && has_next && lead == column_lead(columns)) {
        int4 pair = *reinterpret_cast<const int4*>(columns + column);
        first = make_int2(pair.x, pair.y);
        second = make_int2(pair.z, pair.w);
    } else {
        if (has_first) first = columns[column];
        if (has_next) second = columns[next];
    }
    store_due(
        parts, column, has_first, has_next, in_part(first, column, part_columns, part_rows),
        in_part(second, next, part_columns, part_rows));
}

extern "C" __global__ __launch_bounds__(BLOCK_THREADS) void dense_mask(
    const int2* columns,      // (slices, column_num) of (LTS, UTE)
    unsigned column_num,      // in [1, INT32_MAX]
    unsigned row_num,         // in [1, INT32_MAX]
    unsigned rows_per_block,
    unsigned blocks_a_row,    // blocks side by side, of 4 * BLOCK_THREADS columns each
    unsigned blocks_a_slice,  // blocks_a_row * ceil(row_num / rows_per_block)
    unsigned char* shown)     // (slices, row_num, column_num)
{
    unsigned slice = blockIdx.x / blocks_a_slice, block = blockIdx.x % blocks_a_slice;
    columns += (unsigned long long)slice * column_num;
    shown += (unsigned long long)slice * row_num * column_num;
    unsigned column = 4 * (block % blocks_a_row * BLOCK_THREADS + threadIdx.x);
    if (column >= column_num) return;
    unsigned in_row = min(4u, column_num - column);
    int2 bounds[4];
    for (unsigned i = 0; i < 4; ++i) bounds[i] = columns[column + min(i, in_row - 1)];

    unsigned first_row = block / blocks_a_row * rows_per_block;
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
