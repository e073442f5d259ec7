/* Feeds analysis/bhattacharyya/cpu.c, built into this, random shapes and numbers in memory that
 * ends where the kernel is told it ends, and compares what it says with plain sums in double.
 *
 *     kernel ROUNDS SEED
 *
 * Of log-probabilities, whatever their 16 bits are, rows that do not sum to 1 are counted as such;
 * of those that do, no sum is infinite, NaN or off. To be built with sanitizers. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cpu.c"

typedef int64_t Pack(const void *, const float *, int64_t, int64_t, int64_t, int64_t, int64_t,
                     int64_t, float, float *, double *, double *);
typedef void Accumulate(const float *, const float *, int64_t, int64_t, int64_t, int64_t, int64_t,
                        int64_t, int, double *, int64_t);

static const struct {
    int lanes;
    Pack *pack;
    Accumulate *accumulate;
} kernels[] = {
    {4, pack_4, accumulate_4},
#ifdef __x86_64__
    {8, pack_8, accumulate_8},
    {16, pack_16, accumulate_16},
#endif
};

static uint64_t state;

static uint64_t random_bits(void)
{
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return state;
}

static int64_t below(int64_t n) { return (int64_t)(random_bits() >> 11) % n; }

static double half(uint16_t bits)
{
    const int exponent = bits >> 10 & 31, fraction = bits & 1023;
    const double size = exponent == 31 ? (fraction ? NAN : INFINITY)
                        : exponent     ? ldexp(1024 + fraction, exponent - 25)
                                       : ldexp(fraction, -24);
    return bits >> 15 ? -size : size;
}

/* The bits of the float16 that is nearest to x, from -65504 to 0. */
static uint16_t nearest_half(double x)
{
    int low = 0, high = 0x7bff;
    while (low < high) {
        const int middle = (low + high) / 2;
        if (half((uint16_t)middle) < -x)
            low = middle + 1;
        else
            high = middle;
    }
    if (low > 0 && half((uint16_t)low) + x > -x - half((uint16_t)(low - 1)))
        low--;
    return (uint16_t)(0x8000 | low);
}

/* A row: a distribution, less or more sharp, or bits of any meaning. */
static void make_row(uint16_t *row, int64_t n_classes, int any)
{
    static const uint16_t odd[] = {0x0000, 0x8000, 0x0001, 0x8001, 0x03ff, 0x7bff, 0xfbff,
                                   0x7c00, 0xfc00, 0x7c01, 0xfe00, 0xffff, 0x3c00, 0xbc00};
    if (any && below(4) == 0) {
        const int64_t kind = below(3);
        for (int64_t c = 0; c < n_classes; c++)
            row[c] = kind == 0   ? (uint16_t)random_bits()
                     : kind == 1 ? odd[below(sizeof odd / sizeof *odd)]
                                 : 0xfc00;
        return;
    }
    static const double scales[] = {0, 1e-4, 1, 20, 1000, 65000};
    const double scale = scales[below(6)];
    double *x = malloc(n_classes * sizeof *x), top = -INFINITY, sum = 0;
    for (int64_t c = 0; c < n_classes; c++)
        top = fmax(top, x[c] = scale * (double)below(1 << 20) / (1 << 20));
    for (int64_t c = 0; c < n_classes; c++)
        sum += exp(x[c] - top);
    for (int64_t c = 0; c < n_classes; c++)
        row[c] = nearest_half(fmax(-65504, x[c] - top - log(sum)));
    free(x);
}

static void fail(const char *what, int lanes, double found, double expected)
{
    fprintf(stderr, "%d lanes: %s: %.17g instead of %.17g\n", lanes, what, found, expected);
    exit(1);
}

/* Square-root probabilities of rows, normalised; returns how many do not sum to 1, and marks as
 * undecided (-1) where that is a matter of rounding. */
static int64_t normal(const uint16_t *rows, int64_t n_rows, int64_t n_classes, double tolerance,
                      double *s)
{
    int64_t n_wrong = 0, undecided = 0;
    for (int64_t i = 0; i < n_rows; i++) {
        double sum = 0;
        for (int64_t c = 0; c < n_classes; c++)
            sum += exp(half(rows[i * n_classes + c]));
        n_wrong += !(fabs(sum - 1) <= tolerance);
        undecided |= fabs(fabs(sum - 1) - tolerance) < 1e-5;
        for (int64_t c = 0; c < n_classes; c++)
            s[i * n_classes + c] = exp(half(rows[i * n_classes + c]) / 2) / sqrt(sum);
    }
    return undecided ? -1 : n_wrong;
}

typedef struct {
    int64_t n, n_panels, wrong;
    uint16_t *rows;
    double *s;
} Input;

typedef struct {
    float *panels;
    double *own;
} Packed;

static Input make_input(int64_t n_samples, int64_t n_classes, int any, double tolerance)
{
    Input x = {.n = 1 + below(70)};
    x.n_panels = (x.n + 31) / 32 * 2;
    x.rows = malloc(x.n * n_samples * n_classes * sizeof *x.rows);
    x.s = malloc(x.n * n_samples * n_classes * sizeof *x.s);
    for (int64_t i = 0; i < x.n * n_samples; i++)
        make_row(x.rows + i * n_classes, n_classes, any);
    x.wrong = normal(x.rows, x.n * n_samples, n_classes, tolerance, x.s);
    return x;
}

static Packed packed(Pack *pack, int lanes, const Input *x, const float *roots, int64_t n_samples,
                     int64_t n_classes, double tolerance)
{
    const int64_t size = x->n * n_samples * n_classes, stride = n_samples * n_classes;
    float *panels = malloc(x->n_panels * WIDTH * stride * sizeof *panels);
    double *own = calloc(x->n_panels * WIDTH, sizeof *own);
    double *log_sums = calloc(x->n_panels * WIDTH, sizeof *log_sums);
    int64_t wrong = 0;
    if (below(2)) {
        for (int64_t k = 0; k < x->n_panels; k++)
            wrong += pack(x->rows, roots, stride, x->n, n_samples, n_classes, k, k + 1,
                          (float)tolerance, panels, own, log_sums);
    } else {
        float *s = malloc(size * sizeof *s);
        for (int64_t i = 0; i < size; i++)
            s[i] = roots[x->rows[i]];
        wrong = pack(s, NULL, stride, x->n, n_samples, n_classes, 0, x->n_panels,
                     (float)tolerance, panels, own, log_sums);
        free(s);
    }
    /* Rows of the last snapshot count as often as it is repeated. */
    if (x->wrong >= 0 && !wrong != !x->wrong)
        fail("rows that do not sum to 1", lanes, (double)wrong, (double)x->wrong);
    for (int64_t i = 0; !wrong && i < x->n_panels * WIDTH; i++)
        if (!(fabs(own[i]) < 1e-7 * (double)((3 + n_classes) * n_samples)))
            fail("what is left of a norm", lanes, own[i], 0);
    for (int64_t i = 0; !wrong && i < x->n_panels * WIDTH; i++)
        if (!(fabs(log_sums[i]) < 1.1 * tolerance * (double)n_samples))
            fail("the logarithm of sums that are almost 1", lanes, log_sums[i], 0);
    free(log_sums);
    return (Packed){panels, own};
}

static void compare(Accumulate *accumulate, int lanes, const Input *x, const Input *y,
                    Packed p, Packed q, int64_t n_samples, int64_t n_classes)
{
    const int64_t n_rows = x->n_panels * WIDTH, n_columns = y->n_panels * WIDTH;
    double *L = calloc(n_rows * n_columns, sizeof *L);
    const int64_t top = below(x->n_panels) * WIDTH, left = below(y->n_panels / 2) * 2 * WIDTH;
    accumulate(p.panels, q.panels, n_samples, n_classes, top, n_rows, left, n_columns, x == y, L,
               n_columns);
    for (int64_t i = 0; i < x->n; i++)
        for (int64_t j = 0; j < y->n; j++) {
            if (i < top || j < left) {
                if (L[i * n_columns + j] != 0)
                    fail("outside the rectangle", lanes, L[i * n_columns + j], 0);
                continue;
            }
            if ((x == y && i > j) || x->wrong || y->wrong)
                continue;
            double sum = 0;
            for (int64_t n = 0; n < n_samples; n++) {
                double bc = 0;
                for (int64_t c = 0; c < n_classes; c++)
                    bc += x->s[(i * n_samples + n) * n_classes + c] *
                          y->s[(j * n_samples + n) * n_classes + c];
                sum += log(fmax(bc, ldexp(1, -60)));
            }
            const double found = L[i * n_columns + j] - (p.own[i] + q.own[j]) / 2;
            if (!(fabs(found - sum) <= 1e-6 * (double)n_samples - 1e-7 * sum))
                fail("a sum of logarithms", lanes, found, sum);
        }
    free(L);
}

int main(int argc, char **argv)
{
    if (argc != 3)
        return 2;
    const int64_t rounds = atoll(argv[1]);
    float *roots = malloc(65536 * sizeof *roots);
    int64_t n_sound = 0;
    for (int bits = 0; bits < 65536; bits++)
        roots[bits] = (float)exp(half((uint16_t)bits) / 2);
    for (int64_t round = 0; round < rounds; round++) {
        state = (strtoull(argv[2], NULL, 10) + (uint64_t)round) * 0x9e3779b97f4a7c15u + 1;
        const int64_t n_classes = below(8) ? 2 + below(40) : 1 + below(400);
        const int64_t n_samples = 1 + below(n_classes > 40 ? 9 : 70);
        const double tolerance = below(2) ? 1e-3 : 0.025;
        const int any = below(2) != 0;
        Input x = make_input(n_samples, n_classes, any, tolerance);
        Input y = make_input(n_samples, n_classes, any, tolerance);
        n_sound += !x.wrong && !y.wrong;
        for (size_t k = 0; k < sizeof kernels / sizeof *kernels; k++) {
            const int lanes = kernels[k].lanes;
            if (lanes > widest())
                continue;
            Packed p = packed(kernels[k].pack, lanes, &x, roots, n_samples, n_classes, tolerance);
            Packed q = packed(kernels[k].pack, lanes, &y, roots, n_samples, n_classes, tolerance);
            compare(kernels[k].accumulate, lanes, &x, &y, p, q, n_samples, n_classes);
            compare(kernels[k].accumulate, lanes, &x, &x, p, p, n_samples, n_classes);
            free(p.panels), free(p.own), free(q.panels), free(q.own);
        }
        free(x.rows), free(x.s), free(y.rows), free(y.s);
    }
    free(roots);
    printf("%lld rounds, %lld of them of distributions alone\n", (long long)rounds,
           (long long)n_sound);
    return 0;
}
