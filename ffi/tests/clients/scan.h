/* What the clients of the tests share: a scan made by formula, and an end where the library refuses. */
#include <jrs.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void check(int32_t code)
{
    if (code != JRS_OK) {
        fprintf(stderr, "libjrs says %d: %s\n", (int)code, jrs_last_error());
        exit(1);
    }
}

/* A cylinder with soft waves along x, y and z, moved along x by `shift` mm. */
static jrs_volume scan(const uint64_t dims[3], double spacing, double shift)
{
    jrs_volume volume;
    uint64_t i, j, k;
    const size_t count = (size_t)(dims[0] * dims[1] * dims[2]);
    int16_t *voxels = malloc(count * sizeof *voxels), *next = voxels;

    if (voxels == NULL)
        exit(1);
    for (k = 0; k < dims[2]; k++)
        for (j = 0; j < dims[1]; j++)
            for (i = 0; i < dims[0]; i++) {
                const double x = spacing * ((double)i - 0.5 * (double)dims[0]) + shift;
                const double y = spacing * ((double)j - 0.5 * (double)dims[1]);
                const double z = spacing * ((double)k - 0.5 * (double)dims[2]);
                const int inside = hypot(x, y) < 0.4 * spacing * (double)dims[1];

                *next++ = (int16_t)(inside ? 40 + 200 * sin(x / 9) * cos(y / 11) * cos(z / 13) : -1000);
            }
    check(jrs_volume_init(&volume, sizeof volume));
    volume.data = voxels;
    volume.data_bytes = count * sizeof *voxels;
    memcpy(volume.dims, dims, sizeof volume.dims);
    volume.spacing[0] = volume.spacing[1] = volume.spacing[2] = spacing;
    return volume;
}
