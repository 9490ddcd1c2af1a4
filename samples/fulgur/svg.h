/* A plot with logarithmic axes as an SVG file. */
#ifndef FULGUR_SAMPLES_SVG_H
#define FULGUR_SAMPLES_SVG_H

#include <stdbool.h>
#include <stddef.h>

enum { SVG_SERIES = 6 };

typedef struct svg_series {
    const char *name;
    const double *x, *y; /* above 0, x ascending; y <= 0: no such point */
    size_t n;
    bool dashed;
} svg_series;

typedef struct svg_plot {
    const char *title, *subtitle, *source; /* lines above the plot */
    const char *x_label, *y_label;
    bool binary_x; /* ticks at powers of two with k = 1024 */
    svg_series series[SVG_SERIES];
    size_t count;
} svg_plot;

/* False if the file can't be written (errno says why) or there is no point to draw. */
bool svg_write(const char *path, const svg_plot *plot);

#endif
