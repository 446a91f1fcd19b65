// How [LTS, UTE] columns are stored: two columns, 16 bytes, at a time.
//
// A pair starts at a 16-byte boundary. An array may start 8 bytes behind one. Then its first column
// is the second half of a pair: lead is 1, and pair p holds the columns 2 * p - lead and the next.

// Returns how many columns to count in front of the array so that pairs are aligned: 0 or 1.
__device__ unsigned column_lead(const int2* columns)
{
    return (unsigned)(reinterpret_cast<unsigned long long>(columns) / sizeof(int2)) % 2;
}

// Writes `column` and the next. The two are an aligned pair, here and below.
__device__ void store_whole_pair(int2* columns, unsigned column, int2 a, int2 b)
{
    *reinterpret_cast<int4*>(columns + column) = make_int4(a.x, a.y, b.x, b.y);
}

// Writes a as `column` if has_a, and b as the next if has_b.
__device__ void store_due(int2* columns, unsigned column, bool has_a, bool has_b, int2 a, int2 b)
{
    if (has_a && has_b) store_whole_pair(columns, column, a, b);
    else if (has_a) columns[column] = a;
    else if (has_b) columns[column + 1] = b;
}

// Writes those of the two that are below column_num. In front of a half pair `column` is -1, which
// as unsigned is above column_num.
__device__ void store_pair(int2* columns, unsigned column, unsigned column_num, int2 a, int2 b)
{
    store_due(columns, column, column < column_num, column + 1 < column_num, a, b);
}
