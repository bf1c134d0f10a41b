/* A byte 5-gram with interpolated modified Kneser-Ney smoothing (Chen and Goodman 1998), static.
 *
 *   ngram TRAIN TEST...      one line for each TEST: bytes, bits per byte
 *
 * TRAIN and each TEST are plain bytes. Before the first byte of each stand four newlines. Order 5 counts occurrences,
 * orders 4 to 1 count the distinct bytes that come before; order 0 gives each byte 1/256. An order whose counts of
 * counts do not allow the three discounts (n1, n2 or n3 is 0: unigrams of bytes) uses 0.5, 1, 1.5, at most the count. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ORDER 5

struct table {                  /* n-grams of one order, sorted by key; the last byte is the predicted one */
    uint64_t *key;
    uint32_t *count;
    size_t n;
    double discount[4];
};

static void fail(const char *what, const char *name) {
    fprintf(stderr, "ngram: %s %s\n", what, name);
    exit(1);
}

static void *get(size_t bytes) {
    void *p = malloc(bytes ? bytes : 1);
    if (!p) fail("out of memory", "");
    return p;
}

static unsigned char *read_file(const char *name, size_t *n) {
    FILE *f = fopen(name, "rb");
    if (!f) fail("cannot open", name);
    fseek(f, 0, SEEK_END);
    *n = (size_t)ftell(f);
    rewind(f);
    unsigned char *p = get(*n + ORDER - 1);
    memset(p, '\n', ORDER - 1);
    if (fread(p + ORDER - 1, 1, *n, f) != *n) fail("cannot read", name);
    fclose(f);
    return p;
}

/* Radix sort by the lowest `bytes` bytes. */
static void sort(uint64_t *a, size_t n, int bytes) {
    uint64_t *b = get(n * sizeof *b), *from = a, *to = b;
    for (int k = 0; k < bytes; k++) {
        size_t start[257] = {0};
        for (size_t i = 0; i < n; i++) start[(from[i] >> (8 * k) & 255) + 1]++;
        for (int i = 0; i < 256; i++) start[i + 1] += start[i];
        for (size_t i = 0; i < n; i++) to[start[from[i] >> (8 * k) & 255]++] = from[i];
        uint64_t *t = from; from = to; to = t;
    }
    if (from != a) memcpy(a, from, n * sizeof *a);
    free(b);
}

/* Sorted keys (owned) to distinct keys with counts and the order's discounts. */
static struct table count(uint64_t *key, size_t n, int bytes) {
    struct table t = {key, get(n * sizeof(uint32_t)), 0, {0}};
    sort(key, n, bytes);
    for (size_t i = 0, j; i < n; i = j) {
        for (j = i; j < n && key[j] == key[i]; j++) {}
        t.count[t.n] = (uint32_t)(j - i);
        key[t.n++] = key[i];
    }
    double c[5] = {0};
    for (size_t i = 0; i < t.n; i++) if (t.count[i] <= 4) c[t.count[i]]++;
    if (c[1] > 0 && c[2] > 0 && c[3] > 0) {
        double y = c[1] / (c[1] + 2 * c[2]);
        for (int k = 1; k <= 3; k++) t.discount[k] = k - (k + 1) * y * c[k + 1] / c[k];
    }
    for (int k = 1; k <= 3; k++)
        if (!(t.discount[k] > 0 && t.discount[k] < k)) t.discount[k] = 0.5 * k;
    return t;
}

static size_t lower(const struct table *t, uint64_t key) {
    size_t a = 0, b = t->n;
    while (a < b) {
        size_t m = a + (b - a) / 2;
        if (t->key[m] < key) a = m + 1; else b = m;
    }
    return a;
}

/* p(last byte | the `order`-1 bytes before it); `gram` holds the last ORDER bytes. */
static double probability(const struct table *tables, int order, uint64_t gram) {
    if (order == 0) return 1.0 / 256;
    double below = probability(tables, order - 1, gram);
    const struct table *t = &tables[order];
    uint64_t key = gram & (((uint64_t)1 << (8 * order)) - 1), first = key & ~(uint64_t)255;
    double total = 0, seen = 0, spared = 0;
    for (size_t i = lower(t, first); i < t->n && t->key[i] <= (first | 255); i++) {
        double d = t->discount[t->count[i] < 3 ? t->count[i] : 3];
        total += t->count[i];
        spared += d;
        if (t->key[i] == key) seen = t->count[i] - d;
    }
    return total > 0 ? (seen + spared * below) / total : below;
}

int main(int argc, char **argv) {
    if (argc < 3) fail("usage: ngram TRAIN TEST...", "");
    size_t n;
    unsigned char *text = read_file(argv[1], &n);
    struct table tables[ORDER + 1];
    uint64_t *key = get(n * sizeof *key), gram = 0;
    for (int i = 0; i < ORDER - 1; i++) gram = gram << 8 | text[i];
    for (size_t i = 0; i < n; i++) {
        gram = (gram << 8 | text[i + ORDER - 1]) & 0xffffffffffu;
        key[i] = gram;
    }
    free(text);
    tables[ORDER] = count(key, n, ORDER);
    for (int order = ORDER - 1; order > 0; order--) {
        const struct table *above = &tables[order + 1];
        key = get(above->n * sizeof *key);
        for (size_t i = 0; i < above->n; i++) key[i] = above->key[i] & (((uint64_t)1 << (8 * order)) - 1);
        tables[order] = count(key, above->n, order);
    }
    for (int a = 2; a < argc; a++) {
        text = read_file(argv[a], &n);
        double bits = 0;
        gram = 0;
        for (int i = 0; i < ORDER - 1; i++) gram = gram << 8 | text[i];
        for (size_t i = 0; i < n; i++) {
            gram = (gram << 8 | text[i + ORDER - 1]) & 0xffffffffffu;
            bits -= log2(probability(tables, ORDER, gram));
        }
        printf("%zu\t%.6f\n", n, n ? bits / (double)n : 0.0);
        free(text);
    }
    return 0;
}
