// The two staircases of the rows, and how they are stored.
//
// The keys of row r start at column S(r) and end at column E(r), as rows.cuh says. The staircases are
// ends(r) = max(E(0..r)) and starts(r) = min(S(r..)). They never decrease over the whole pack. The
// bounds of a column count their steps: UTE(c) is how many rows have ends <= c, and LTS(c) how many
// have starts <= c.
//
//     row      0  1  2  3  4          column     0  1  2  3  4
//     E        2  1  3  5  5
//     ends     2  2  3  5  5    ->    UTE        0  0  2  3  3
//     S        0  0  1  0  3
//     starts   0  0  0  0  3    ->    LTS        4  4  4  5  5
//
// They are stored in tiles of TILE rows. Each tile is scanned by itself, so that no block waits for
// another. Tiles are in groups, one group a block. What a tile needs to know of the others is kept at
// its edge, where a search reads it:
//   - ends of a tile's last row is the maximum over the tiles of its group up to this one,
//   - starts of a tile's first row is the minimum over the tiles of its group from this one on,
//   - group_edges[g] is (maximum of E, minimum of S) of the group. There are at most GROUPS of them,
//     so that a block can scan them all at once.

#include "scans.cuh"

// Where the staircases of row_num rows are, and which rows and tiles belong together. A group has
// 2**group_shift tiles.
struct Staircases {
    int* ends;    // (row_num,), 16-byte aligned
    int* starts;  // (row_num,), 16-byte aligned
    unsigned row_num, group_shift;

    __device__ unsigned tile_num() const { return (row_num + TILE - 1) / TILE; }
    __device__ unsigned first_tile(unsigned group) const { return group << group_shift; }
    __device__ unsigned tile_end(unsigned group) const
    {
        return min((group + 1) << group_shift, tile_num());
    }
    __device__ unsigned first_row(unsigned tile) const { return tile * TILE; }
    __device__ unsigned last_row(unsigned tile) const { return min(tile * TILE + TILE, row_num) - 1; }
};

// One of the two staircases, ends or starts, and the search for a column's step in it. The edge of a
// tile is its last row for ends, its first row for starts. A template rather than a flag: the kernel
// that writes 64 M columns took 345 us rather than 421.
template <bool ENDS>
struct Staircase {
    // A search of edges finds the first tile whose edge is above the column. For ends the column's step
    // is in that tile. For starts it is in the tile before it.
    static constexpr unsigned OVERSHOOT = ENDS ? 0 : 1;

    const int* steps;        // (row_num,)
    const int* group_edges;  // (group_num,) scanned over the groups, in shared memory
    unsigned group_num;
    Staircases stored;

    // Returns the edge of a tile, scanned across its group.
    __device__ int operator[](unsigned tile) const
    {
        return steps[ENDS ? stored.last_row(tile) : stored.first_row(tile)];
    }

    // The search for a column's step goes through groups, then tiles, then rows. Each of the three
    // functions gives the range [lo, hi] for the next search. One group needs no search.
    __device__ void all_groups(unsigned& lo, unsigned& hi) const
    {
        lo = 0;
        hi = group_num > 1 ? group_num : 0;
    }

    // From the group that was found, in lo, to its tiles. One tile is left out of the search: for ends
    // the last, where the step is if no other edge is above the column, and for starts the first, where
    // the step is if all other edges are.
    __device__ void tiles_of_group(unsigned& lo, unsigned& hi) const
    {
        unsigned group = ENDS ? min(lo, group_num - 1) : max(lo, 1u) - 1;
        lo = stored.first_tile(group) + OVERSHOOT;
        hi = stored.tile_end(group) - 1 + OVERSHOOT;
    }

    // From the tile that was found, in lo, to its rows.
    __device__ void rows_of_tile(unsigned& lo, unsigned& hi) const
    {
        unsigned tile = lo - OVERSHOOT;
        lo = stored.first_row(tile);
        hi = stored.last_row(tile) + 1;
    }

    // Returns the tile in which the steps at or below the column end. All steps before that tile are at
    // or below the column, and none behind it is. All lanes have one column.
    __device__ unsigned warp_tile_of(int column) const
    {
        unsigned lo, hi;
        all_groups(lo, hi);
        lo = warp_upper_bound(group_edges, lo, hi, column);
        tiles_of_group(lo, hi);
        return warp_upper_bound(*this, lo, hi, column) - OVERSHOOT;
    }

    // Returns whether all rows of a tile have one step, the edge beside it. Of groups of one tile each.
    __device__ bool is_level(unsigned tile) const
    {
        if (ENDS) return tile > 0 && group_edges[tile - 1] == group_edges[tile];
        return tile + 1 < group_num && group_edges[tile + 1] == group_edges[tile];
    }

    // Returns for each column how many rows have their step at or below it.
    __device__ Four count(const int (&column)[PER_THREAD]) const
    {
        unsigned lo[PER_THREAD], hi[PER_THREAD];
        for (int i = 0; i < PER_THREAD; ++i) all_groups(lo[i], hi[i]);
        upper_bounds(group_edges, lo, hi, column);
        for (int i = 0; i < PER_THREAD; ++i) tiles_of_group(lo[i], hi[i]);
        upper_bounds(*this, lo, hi, column);
        for (int i = 0; i < PER_THREAD; ++i) rows_of_tile(lo[i], hi[i]);
        upper_bounds(steps, lo, hi, column);
        return {{(int)lo[0], (int)lo[1], (int)lo[2], (int)lo[3]}};
    }

    // Returns the thread's four steps of a tile, scanned across all tiles.
    __device__ Four load(unsigned tile) const
    {
        unsigned row = stored.first_row(tile) + PER_THREAD * threadIdx.x;
        Four v = {{NO_ROW, NO_ROW, NO_ROW, NO_ROW}};
        if (row + PER_THREAD <= stored.row_num) {
            v = get_four(steps + row);
        } else {
            for (unsigned i = 0; i < PER_THREAD; ++i)
                if (row + i < stored.row_num) v.at[i] = steps[row + i];
        }
        unsigned group = tile >> stored.group_shift;
        if (ENDS) {
            int before = group > 0 ? group_edges[group - 1] : -1;
            if (tile > stored.first_tile(group)) before = max(before, (*this)[tile - 1]);
            for (int& step : v.at) step = max(step, before);
        } else {
            int behind = group + 1 < group_num ? group_edges[group + 1] : NO_ROW;
            if (tile + 1 < stored.tile_end(group)) behind = min(behind, (*this)[tile + 1]);
            for (int& step : v.at) step = min(step, behind);
        }
        return v;
    }
};
