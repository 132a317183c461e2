/* See histogram.h. */
#include "histogram.h"

void histogram_record(struct histogram *histogram, uint64_t value_ns) {
    int bits = 64 - __builtin_clzll(value_ns | (SUB_BUCKETS - 1));
    int bucket = bits - 11; /* SUB_BUCKETS has 11 bits */
    uint64_t index = (uint64_t)bucket * HALF + (value_ns >> bucket);
    if (bucket >= BUCKETS)
        index = (BUCKETS + 1) * HALF - 1;
    histogram->counts[index]++;
}

void histogram_print(const struct histogram *histogram, FILE *file) {
    const char *comma = "";
    fputc('[', file);
    for (uint64_t index = 0; index < (BUCKETS + 1) * HALF; index++) {
        if (!histogram->counts[index])
            continue;
        uint64_t bucket = index < SUB_BUCKETS ? 0 : index / HALF - 1;
        uint64_t value = (index - bucket * HALF) << bucket;
        fprintf(file, "%s[%llu,%llu]", comma, (unsigned long long)value, (unsigned long long)histogram->counts[index]);
        comma = ",";
    }
    fputc(']', file);
}
