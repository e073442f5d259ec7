/* Σ log of Bhattacharyya coefficients, one thread's share of it; cpu.py has the threads.
 *
 * Operands are square-root probabilities in panels of WIDTH snapshots: panel, sample, class,
 * snapshot. One layout serves as rows, whose numbers are broadcast, and as columns, which are
 * loaded as vectors; both are read strictly forwards.
 *
 * A tile of a few rows × 2·LANES coefficients stays in registers while the classes of one sample
 * are summed. A logarithm for each would bind, so coefficients are multiplied: after GROUP samples
 * the product's exponent goes to an integer sum, exactly, and its mantissa stays. One logarithm of
 * that mantissa is taken for each block of samples.
 *
 * The file includes itself once for every width of vectors; each function is compiled for the
 * instructions that its name promises, so that one build runs on any processor of its kind.
 */
#ifndef LANES

#include <stdint.h>
#ifdef __x86_64__
#include <immintrin.h>
#endif

enum {
    WIDTH = 16,          /* snapshots in a panel */
    MOST = 8,            /* of them, rows of a tile */
    GROUP = 4,           /* coefficients in a product; 2^124 · (2^-60)^4 is a normal float still */
    SCALE = 127 + 124,   /* biased exponent that a product starts with */
    FLOOR = 127 - 60,    /* biased exponent of the smallest coefficient */
    LOW = SCALE - 60 + 2, /* above that of any product of which one coefficient is smaller */
    CHUNK = 32,          /* classes summed at once: rounding grows with the length of a sum */
    BLOCK = 1280,        /* classes × samples of a panel that the second-level cache holds twice */
    SPREAD = 320         /* those that the first-level cache holds once */
};

static int64_t at_most(int64_t limit, int64_t n) { return n < limit ? n : limit; }

/* Samples that amount to `entries` numbers a snapshot, whole groups of them. */
static int64_t run_of(int64_t entries, int64_t n_classes)
{
    const int64_t n = entries / n_classes / GROUP * GROUP;
    return n < GROUP ? GROUP : n;
}

/* Lanes of the widest vectors that this processor and its system have. */
int widest(void)
{
#ifdef __x86_64__
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq"))
        return 16;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return 8;
#endif
    return 4;
}

#define INLINE __attribute__((always_inline)) inline
#define JOINED(name, lanes) name##_##lanes
#define NAMED(name, lanes) JOINED(name, lanes)
#define FOR_LANES(name) NAMED(name, LANES)

#ifdef __x86_64__
#define LANES 16
#define STRIPS(of) of(0, 8) of(8, 8) /* rows of a panel: from which on, and how many at once */
#define TARGET __attribute__((target("avx512f,avx512dq")))
#define LARGER(a, b) ((ints)_mm512_max_epi32((__m512i)(a), (__m512i)(b)))
#include "cpu.c"
#define LANES 8
#define STRIPS(of) of(0, 6) of(6, 5) of(11, 5) /* 12 of 16 registers are sums, 3 are operands */
#define TARGET __attribute__((target("avx2,fma")))
#define LARGER(a, b) ((ints)_mm256_max_epi32((__m256i)(a), (__m256i)(b)))
#include "cpu.c"
#endif
#define LANES 4 /* SSE2, NEON, or whatever the compiler makes of it */
#define STRIPS(of) of(0, 4) of(4, 4) of(8, 4) of(12, 4)
#define TARGET
#define LARGER(a, b) (((a) & ((a) > (b))) | ((b) & ((a) <= (b))))
#include "cpu.c"

#else

typedef float FOR_LANES(floats) __attribute__((vector_size(4 * LANES)));
typedef int32_t FOR_LANES(ints) __attribute__((vector_size(4 * LANES)));
typedef FOR_LANES(floats) FOR_LANES(operand) __attribute__((aligned(4), may_alias));
#define floats FOR_LANES(floats)
#define ints FOR_LANES(ints)
#define operand FOR_LANES(operand)

/* Of one sample, the sums over some classes of the products of `rows` snapshots at `p` with LANES
 * at `q` and LANES at `r`. */
INLINE TARGET static void FOR_LANES(multiply)(int rows, const float *p, const float *q,
                                              const float *r, int64_t n_classes,
                                              floats sum[MOST][2])
{
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++)
        sum[i][0] = sum[i][1] = (floats){0};
    for (int64_t c = 0; c < n_classes; c++, p += WIDTH, q += WIDTH, r += WIDTH) {
        const floats s = *(const operand *)q, t = *(const operand *)r;
#pragma GCC unroll 8
        for (int i = 0; i < rows; i++) {
            sum[i][0] += s * p[i];
            sum[i][1] += t * p[i];
        }
    }
}

/* Add Σ ln max(floor, Σ √(p q)) over samples and classes to `L`, whose rows are `ld` apart.
 *
 * Unless it is `floored`, coefficients are not compared with the floor, and nothing is added and 1
 * returned where one may be below it: where the product of some, all of them 1 at most, is.
 * How many `rows` and whether there are several `chunks` of classes is known when this is compiled,
 * since sums that are not needed would take registers. */
INLINE TARGET static int FOR_LANES(tile)(int rows, const float *p, const float *q, const float *r,
                                         int64_t n_samples, int64_t n_classes, int chunks,
                                         int floored, double *L, int64_t ld)
{
    ints low = {0}; /* negative where a product was below the floor */
    floats product[MOST][2];
    ints exponent[MOST][2];
    int32_t bias = 0;
    for (int i = 0; i < rows; i++)
        for (int k = 0; k < 2; k++) {
            product[i][k] = (floats)((ints){0} + (SCALE << 23));
            exponent[i][k] = (ints){0};
        }
    for (int64_t n = 0; n < n_samples; n += GROUP, bias += SCALE) {
        for (int64_t left = at_most(GROUP, n_samples - n); left > 0; left--) {
            floats sum[MOST][2];
            FOR_LANES(multiply)(rows, p, q, r, chunks ? CHUNK : n_classes, sum);
            for (int64_t c = CHUNK; chunks && c < n_classes; c += CHUNK) {
                const int64_t at = c * WIDTH, some = at_most(CHUNK, n_classes - c);
                floats part[MOST][2];
                FOR_LANES(multiply)(rows, p + at, q + at, r + at, some, part);
#pragma GCC unroll 8
                for (int i = 0; i < rows; i++) {
                    sum[i][0] += part[i][0];
                    sum[i][1] += part[i][1];
                }
            }
            p += n_classes * WIDTH, q += n_classes * WIDTH, r += n_classes * WIDTH;
#pragma GCC unroll 8
            for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
                for (int k = 0; k < 2; k++) {
                    /* Floats that are not negative are in the order of their bits. */
                    const ints floor = (ints){0} + (FLOOR << 23);
                    product[i][k] *= floored ? (floats)LARGER((ints)sum[i][k], floor) : sum[i][k];
                }
        }
#pragma GCC unroll 8
        for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
            for (int k = 0; k < 2; k++) {
                const ints bits = (ints)product[i][k];
                if (!floored)
                    low |= bits - (LOW << 23);
                exponent[i][k] += bits >> 23;
                product[i][k] = (floats)((bits & 0x7fffff) | SCALE << 23);
            }
    }
    for (int j = 0; j < LANES; j++)
        if (low[j] < 0)
            return 1;
    for (int i = 0; i < rows; i++)
        for (int k = 0; k < 2; k++) {
            /* ln m of m in [√½, √2) by the series of artanh, to 1e-7. */
            const ints bits = ((ints)product[i][k] & 0x7fffff) | 127 << 23;
            const ints high = (floats)bits > 1.41421356f;
            const ints twos = exponent[i][k] - bias - high;
            const floats m = (floats)(bits - (high & 1 << 23));
            const floats t = (m - 1) / (m + 1), u = t * t;
            const floats ln = 2 * t * (1 + u * (1.f / 3 + u * (1.f / 5 + u * (1.f / 7 + u / 9))));
            double *sums = L + i * ld + k * LANES;
            /* Of arrays, compilers make vectors of doubles. */
            int32_t power[LANES];
            float rest[LANES];
            __builtin_memcpy(power, &twos, sizeof power);
            __builtin_memcpy(rest, &ln, sizeof rest);
            for (int j = 0; j < LANES; j++)
                sums[j] += power[j] * 0.693147180559945309 + rest[j];
        }
    return 0;
}

/* A tile, compared with the floor if coefficients were `low` before; returns whether any is. */
INLINE TARGET static int FOR_LANES(strip)(int rows, const float *p, const float *q, const float *r,
                                          int64_t n_samples, int64_t n_classes, int low, double *L,
                                          int64_t ld)
{
    if (n_classes > CHUNK) {
        low = low || FOR_LANES(tile)(rows, p, q, r, n_samples, n_classes, 1, 0, L, ld);
        if (low)
            FOR_LANES(tile)(rows, p, q, r, n_samples, n_classes, 1, 1, L, ld);
    } else {
        low = low || FOR_LANES(tile)(rows, p, q, r, n_samples, n_classes, 0, 0, L, ld);
        if (low)
            FOR_LANES(tile)(rows, p, q, r, n_samples, n_classes, 0, 1, L, ld);
    }
    return low;
}

/* Add to `L` the sums of the rows and columns from `top`, `left` up to `bottom`, `right`, which
 * are multiples of WIDTH and 2·WIDTH. Of rows and columns in order of the same snapshots (`upper`)
 * tiles below the diagonal are left out. */
TARGET void FOR_LANES(accumulate)(const float *p, const float *q, int64_t n_samples,
                                  int64_t n_classes, int64_t top, int64_t bottom, int64_t left,
                                  int64_t right, int upper, double *L, int64_t ld)
{
    const int64_t panel = n_samples * n_classes, step = run_of(BLOCK, n_classes);
    int low = 0; /* whether a coefficient was: where one is, others are likely to be */
    for (int64_t n = 0; n < n_samples; n += step) {
        const int64_t n_run = at_most(step, n_samples - n);
        for (int64_t j = left; j < right; j += 2 * LANES) {
            const int64_t k = j + LANES, end = upper ? at_most(bottom, j + 2 * LANES) : bottom;
            const float *a = q + (j / WIDTH * panel + n * n_classes) * WIDTH + j % WIDTH;
            const float *b = q + (k / WIDTH * panel + n * n_classes) * WIDTH + k % WIDTH;
            for (int64_t i = top; i < end; i += WIDTH) {
                const float *rows = p + (i / WIDTH * panel + n * n_classes) * WIDTH;
                double *sums = L + i * ld + j;
#define STRIP(from, n)                                                                             \
    if (i + from < end)                                                                            \
        low = FOR_LANES(strip)(n, rows + from, a, b, n_run, n_classes, low, sums + from * ld, ld);
                STRIPS(STRIP)
#undef STRIP
            }
        }
    }
}

/* Divide each row of a panel by its norm. Adds to `log_sums` the logarithm of its square, which is
 * the sum of the row's probabilities, and to `own` what rounding leaves of it; returns how many
 * rows' probabilities do not sum to 1. */
TARGET static int64_t FOR_LANES(normalize)(float *panel, int64_t n_samples, int64_t n_classes,
                                           float tolerance, double *own, double *log_sums)
{
    int64_t n_wrong = 0;
    for (int64_t n = 0; n < n_samples; n++, panel += n_classes * WIDTH) {
        float sum[WIDTH] = {0}, scale[WIDTH];
        double square[WIDTH] = {0};
        for (int64_t c = 0; c < n_classes; c++)
            for (int i = 0; i < WIDTH; i++)
                sum[i] += panel[c * WIDTH + i] * panel[c * WIDTH + i];
        int32_t wrong = 0;
        for (int i = 0; i < WIDTH; i++) {
            wrong += !(sum[i] - 1 <= tolerance && 1 - sum[i] <= tolerance);
            scale[i] = 1 / __builtin_sqrtf(sum[i]);
        }
        for (int64_t c = 0; c < n_classes; c++)
            for (int i = 0; i < WIDTH; i++) {
                const float s = panel[c * WIDTH + i] * scale[i];
                panel[c * WIDTH + i] = s;
                square[i] += (double)s * s;
            }
        for (int i = 0; i < WIDTH; i++) {
            /* ln(1 + x) of |x| ≤ 1/40, to 1e-10. */
            const double x = (double)sum[i] - 1;
            log_sums[i] += x * (1 - x * (1. / 2 - x * (1. / 3 - x * (1. / 4 - x / 5))));
            own[i] += square[i] - 1; /* its logarithm, to 1e-14 */
        }
        n_wrong += wrong;
    }
    return n_wrong;
}

/* Fill the panels from `first` up to `last`; returns how many rows do not sum to 1.
 *
 * `values` are, for each of `n_snapshots` at a distance of `stride`, samples × classes: the bits
 * of float16 log-probabilities, whose square-root probabilities are in `roots` by these bits, or,
 * where `roots` is NULL, float32 square-root probabilities. What the last panels lack is filled
 * with the last snapshot. See `normalize` for `own` and `log_sums`, which have a number for each
 * snapshot in the panels. */
TARGET int64_t FOR_LANES(pack)(const void *values, const float *roots, int64_t stride,
                               int64_t n_snapshots, int64_t n_samples, int64_t n_classes,
                               int64_t first, int64_t last, float tolerance, float *panels,
                               double *own, double *log_sums)
{
    const int64_t step = run_of(SPREAD, n_classes);
    int64_t n_wrong = 0;
    for (int64_t k = first; k < last; k++)
        for (int64_t n = 0; n < n_samples; n += step) {
            const int64_t n_run = at_most(step, n_samples - n), entries = n_run * n_classes;
            float *panel = panels + (k * n_samples + n) * n_classes * WIDTH;
            for (int i = 0; i < WIDTH; i++) {
                const int64_t snapshot = at_most(n_snapshots - 1, k * WIDTH + i);
                const int64_t start = snapshot * stride + n * n_classes;
                if (roots)
                    for (int64_t e = 0; e < entries; e++)
                        panel[e * WIDTH + i] = roots[((const uint16_t *)values)[start + e]];
                else
                    for (int64_t e = 0; e < entries; e++)
                        panel[e * WIDTH + i] = ((const float *)values)[start + e];
            }
            n_wrong += FOR_LANES(normalize)(panel, n_run, n_classes, tolerance, own + k * WIDTH,
                                            log_sums + k * WIDTH);
        }
    return n_wrong;
}

#undef floats
#undef ints
#undef operand
#undef LANES
#undef STRIPS
#undef TARGET
#undef LARGER
#endif
