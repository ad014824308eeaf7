/* MPI_Allreduce on the buffers of tests/tests/mpi_collective.rs. Rank 0 writes the sums and the maxima to the file that
 * the first argument names, and prints the median milliseconds of each. */
#include <mpi.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

enum { REPEATS = 15 };

static int64_t value(int rank, int64_t i) { return (int64_t)((uint64_t)(i * 2654435761u + rank * 40503 + 1) % (1ull << 40)) - (1ll << 39); }

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *times) {
    qsort(times, REPEATS, sizeof *times, compare);
    return times[REPEATS / 2];
}

int main(int argc, char **argv) {
    MPI_Init(&argc, &argv);
    int rank;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    const int n = atoi(argv[2]);
    int64_t *sums = malloc(n * sizeof *sums), *sums_out = malloc(n * sizeof *sums);
    int32_t *maxima = malloc(n * sizeof *maxima), *maxima_out = malloc(n * sizeof *maxima);
    for (int i = 0; i < n; i++) {
        sums[i] = value(rank, i);
        maxima[i] = (int32_t)(value(rank, i) >> 10);
    }
    double sum_ms[REPEATS], max_ms[REPEATS];
    for (int r = 0; r < REPEATS; r++) {
        MPI_Barrier(MPI_COMM_WORLD);
        double start = MPI_Wtime();
        MPI_Allreduce(sums, sums_out, n, MPI_INT64_T, MPI_SUM, MPI_COMM_WORLD);
        double middle = MPI_Wtime();
        MPI_Allreduce(maxima, maxima_out, n, MPI_INT32_T, MPI_MAX, MPI_COMM_WORLD);
        sum_ms[r] = 1e3 * (middle - start);
        max_ms[r] = 1e3 * (MPI_Wtime() - middle);
    }
    if (rank == 0) {
        FILE *file = fopen(argv[1], "wb");
        if (!file || fwrite(sums_out, sizeof *sums, n, file) != (size_t)n ||
            fwrite(maxima_out, sizeof *maxima, n, file) != (size_t)n || fclose(file))
            MPI_Abort(MPI_COMM_WORLD, 1);
        printf("%.3f %.3f\n", median(sum_ms), median(max_ms));
    }
    MPI_Finalize();
    return 0;
}
