/* Latencies in HdrHistogram's own layout (3 significant digits), so that Python's hdrhistogram can read the buckets.
 */
#ifndef BENCH_HISTOGRAM_H
#define BENCH_HISTOGRAM_H

#include <stdint.h>
#include <stdio.h>

enum { SUB_BUCKETS = 2048, HALF = SUB_BUCKETS / 2, BUCKETS = 28 }; /* up to 2^38 ns: four and a half minutes */

struct histogram {
    uint64_t counts[(BUCKETS + 1) * HALF];
};
void histogram_record(struct histogram *histogram, uint64_t value_ns);
/* As JSON: [[lowest value of a bucket, how many], …] */
void histogram_print(const struct histogram *histogram, FILE *file);

#endif
