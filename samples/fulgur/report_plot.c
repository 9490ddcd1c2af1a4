/* The plots of a report, drawn for wide and for narrow screens; numbers on them are those of the
 * JSON. */
#include "report.h"

#include <math.h>
#include <string.h>

typedef struct frame {
    double width, height, left, right, top, bottom; /* pixels; right and bottom: of the plot area */
    double x0, x1, y0, y1; /* what lies at the edges; logarithms of ten in the roofline */
    int font;
} frame;

static frame frame_for(bool narrow, double wide_height, double narrow_height)
{
    if (narrow)
        return (frame){.width = 344,
                       .height = narrow_height,
                       .left = 54,
                       .right = 336,
                       .top = 12,
                       .bottom = narrow_height - 42,
                       .font = 12};
    return (frame){.width = 880,
                   .height = wide_height,
                   .left = 64,
                   .right = 866,
                   .top = 14,
                   .bottom = wide_height - 46,
                   .font = 13};
}

static double at_x(const frame *a, double x)
{
    return a->left + (a->right - a->left) * (x - a->x0) / (a->x1 - a->x0);
}

static double at_y(const frame *a, double y)
{
    return a->bottom - (a->bottom - a->top) * (y - a->y0) / (a->y1 - a->y0);
}

/* The edges are written down, so that a program can check where points lie. */
static void begin(FILE *f, const frame *a, bool narrow, const char *label)
{
    fprintf(f,
            "<svg class=\"%s\" viewBox=\"0 0 %g %g\" font-size=\"%d\" role=\"img\" "
            "aria-label=\"%s\" data-x0=\"%.9g\" data-x1=\"%.9g\" data-y0=\"%.9g\" "
            "data-y1=\"%.9g\" data-box=\"%g %g %g %g\">\n",
            narrow ? "narrow" : "wide", a->width, a->height, a->font, label, a->x0, a->x1, a->y0,
            a->y1, a->left, a->top, a->right, a->bottom);
}

static void label_axes(FILE *f, const frame *a, const char *x, const char *y)
{
    fprintf(f, "<path class=\"axis\" d=\"M%g %gV%gH%g\"/>\n", a->left, a->top, a->bottom, a->right);
    fprintf(f, "<text x=\"%g\" y=\"%g\" text-anchor=\"middle\">%s</text>\n",
            (a->left + a->right) / 2.0, a->height - 6.0, x);
    fprintf(f,
            "<text transform=\"translate(%d %g) rotate(-90)\" text-anchor=\"middle\">%s</text>\n",
            a->font, (a->top + a->bottom) / 2.0, y);
}

/* ---- roofline ---- */

const char *report_family(const char *op)
{
    return strncmp(op, "lightning", 9) == 0   ? "f0"
           : strncmp(op, "attention", 9) == 0 ? "f1"
           : strncmp(op, "mat", 3) == 0       ? "f2"
           : strncmp(op, "moe", 3) == 0       ? "f3"
                                              : "f4";
}

/* Rates of the device by their names; 0: not measured. */
static double rate_of(const json_t *root, const char *what)
{
    size_t i;
    json_t *rate;
    json_array_foreach(report_at(root, "/device/rates"), i, rate)
    {
        const char *name = json_string_value(json_object_get(rate, "what"));
        if (name && strcmp(name, what) == 0)
            return json_number_value(json_object_get(rate, "median"));
    }
    return 0.0;
}

typedef struct limits {
    double least_x, most_x, least_y, most_y;
} limits;

static void include(limits *l, double x, double y)
{
    if (!(x > 0.0 && y > 0.0))
        return;
    l->least_x = fmin(l->least_x, x);
    l->most_x = fmax(l->most_x, x);
    l->least_y = fmin(l->least_y, y);
    l->most_y = fmax(l->most_y, y);
}

static bool fit(frame *a, const json_t *results, double bandwidth, double peak)
{
    limits l = {INFINITY, 0.0, INFINITY, 0.0};
    size_t i;
    json_t *r;
    json_array_foreach(results, i, r)
        include(&l, json_number_value(json_object_get(r, "flop_per_byte")),
                json_number_value(json_object_get(r, "tflop_per_s")));
    if (l.most_x <= 0.0)
        return false;
    if (bandwidth > 0.0)
        include(&l, 1e3 * peak / bandwidth, peak);
    a->x0 = floor(log10(l.least_x) + 1e-9);
    a->x1 = ceil(log10(l.most_x) + 0.05);
    a->y0 = floor(log10(l.least_y) + 1e-9);
    a->y1 = ceil(log10(l.most_y) + 0.05);
    return true;
}

/* Decades; those far from one as short as can be. */
static void decade_text(FILE *f, double exponent)
{
    if (fabs(exponent) > 3.5)
        fprintf(f, "1e%.0f", exponent);
    else
        fprintf(f, "%g", pow(10.0, exponent));
}

/* The last label ends where the plot does. */
static const char *anchor_at(const frame *a, double x)
{
    return x > a->right - 12.0 ? "end" : "middle";
}

static void draw_decades(FILE *f, const frame *a)
{
    for (double t = a->x0; t <= a->x1 + 1e-9; t += 1.0) {
        double x = at_x(a, t);
        fprintf(f, "<path class=\"grid\" d=\"M%.1f %gV%g\"/>", x, a->bottom, a->top);
        fprintf(f, "<text x=\"%.1f\" y=\"%g\" text-anchor=\"%s\">", fmin(x, a->width - 2.0),
                a->bottom + a->font + 4.0, anchor_at(a, x));
        decade_text(f, t);
        fputs("</text>\n", f);
    }
    for (double t = a->y0; t <= a->y1 + 1e-9; t += 1.0) {
        fprintf(f, "<path class=\"grid\" d=\"M%g %.1fH%g\"/>", a->left, at_y(a, t), a->right);
        fprintf(f, "<text x=\"%g\" y=\"%.1f\" text-anchor=\"end\">", a->left - 6.0,
                at_y(a, t) + 4.0);
        decade_text(f, t);
        fputs("</text>\n", f);
    }
}

/* ---- where names and numbers go: beside dots, not on them ---- */

enum { MOST_POINTS = 256, MOST_MARKS = 256 };

typedef struct point {
    double x, y; /* pixels */
    double label_x, label_y;
    size_t index; /* in results */
} point;

typedef struct layout {
    const frame *frame;
    point points[MOST_POINTS];
    size_t count, placed;        /* points, and those that have their number */
    double marks[MOST_MARKS][2]; /* along names of roofs */
    size_t mark_count;
} layout;

enum { MARK_STEP = 7 };

/* Dots near a line of text that begins at x, y and runs along a direction. */
static size_t dots_under(const layout *l, double x, double y, double dx, double dy, double length)
{
    enum { NEAR = 12 };
    size_t n = 0;
    for (size_t i = 0; i < l->count; i++) {
        bool near = false;
        for (double t = 0.0; t <= length && !near; t += MARK_STEP)
            near = hypot(l->points[i].x - x - t * dx, l->points[i].y - y - t * dy) < NEAR;
        n += near;
    }
    return n;
}

static void keep_clear(layout *l, double x, double y, double dx, double dy, double length)
{
    for (double t = 0.0; t <= length && l->mark_count < MOST_MARKS; t += MARK_STEP) {
        l->marks[l->mark_count][0] = x + t * dx;
        l->marks[l->mark_count++][1] = y + t * dy;
    }
}

/* A name along a line from x, y to further on, where it covers fewest dots; beginning at the line's
 * start or at its end. */
static void draw_name(FILE *f, layout *l, const char *name, double x, double y, double to_x,
                      double to_y, bool above, bool from_end)
{
    enum { TRIES = 24 };
    double length = hypot(to_x - x, to_y - y), dx = (to_x - x) / length, dy = (to_y - y) / length;
    double text = (double)strlen(name) * l->frame->font * 0.56, room = length - text - 8.0;
    /* The middle of the letters, beside the line. */
    double side = above ? -10.0 : 12.0, best_at = 4.0;
    double middle_x = x - dy * side, middle_y = y + dx * side;
    size_t least = (size_t)-1;
    for (int i = 0; i <= TRIES && room > 0.0; i++) {
        double at = 4.0 + room * (from_end ? TRIES - i : i) / TRIES;
        size_t n = dots_under(l, middle_x + at * dx, middle_y + at * dy, dx, dy, text);
        if (n >= least)
            continue;
        least = n;
        best_at = at;
    }
    fprintf(f,
            "<text class=\"roofname\" transform=\"translate(%.1f %.1f) rotate(%.1f)\" "
            "dy=\"%d\">%s</text>\n",
            x + best_at * dx, y + best_at * dy, atan2(dy, dx) * 57.29577951308232, above ? -6 : 16,
            name);
    keep_clear(l, middle_x + best_at * dx, middle_y + best_at * dy, dx, dy, text);
}

/* Up to where arithmetic limits: TFLOP/s = GB/s / 1000 * FLOP/byte. */
static void draw_bandwidth(FILE *f, layout *l, const char *name, double gbps, double peak,
                           bool above)
{
    const frame *a = l->frame;
    char label[64];
    double rise = log10(gbps / 1e3);
    double from = fmax(a->x0, a->y0 - rise), to = fmin(a->x1, a->y1 - rise);
    if (peak > 0.0)
        to = fmin(to, log10(peak) - rise);
    if (!(to > from))
        return;
    double x = at_x(a, from), y = at_y(a, from + rise);
    double to_x = at_x(a, to), to_y = at_y(a, to + rise);
    fprintf(f, "<path class=\"roof\" d=\"M%.1f %.1fL%.1f %.1f\"/>\n", x, y, to_x, to_y);
    snprintf(label, sizeof label, "%s %.4g GB/s", name, gbps);
    draw_name(f, l, label, x, y, to_x, to_y, above, false);
}

static void draw_peak(FILE *f, layout *l, const char *name, double tflops, double gbps, bool above)
{
    const frame *a = l->frame;
    char label[64];
    double y = log10(tflops), from = gbps > 0.0 ? fmax(a->x0, y - log10(gbps / 1e3)) : a->x0;
    if (!(y > a->y0 && y <= a->y1 && from < a->x1))
        return;
    fprintf(f, "<path class=\"roof\" d=\"M%.1f %.1fH%g\"/>\n", at_x(a, from), at_y(a, y), a->right);
    snprintf(label, sizeof label, "%s %.4g TFLOP/s", name, tflops);
    /* A short line leaves its name no choice but to begin before it. */
    double start = fmin(at_x(a, from), a->right - (double)strlen(label) * a->font * 0.56 - 12.0);
    draw_name(f, l, label, start, at_y(a, y), a->right, at_y(a, y), above, true);
}

static bool taken(const layout *l, double x, double y, double half)
{
    enum { DOT = 6, TALL = 6 };
    for (size_t i = 0; i < l->count; i++) {
        const point *p = &l->points[i];
        if (fabs(p->x - x) < DOT + half && fabs(p->y - y) < DOT + TALL)
            return true;
        if (i < l->placed && fabs(p->label_x - x) < 2.0 * half && fabs(p->label_y - y) < 2.0 * TALL)
            return true;
    }
    for (size_t i = 0; i < l->mark_count; i++)
        if (fabs(l->marks[i][0] - x) < 4.0 + half && fabs(l->marks[i][1] - y) < 6.0 + TALL)
            return true;
    return false;
}

/* Beside its dot, where nothing else is. */
static void place_number(layout *l)
{
    static const double around[8][2] = {{1, 0},      {-1, 0},     {0, -1},    {0, 1},
                                        {0.8, -0.8}, {-0.8, 0.8}, {0.8, 0.8}, {-0.8, -0.8}};
    const frame *a = l->frame;
    point *p = &l->points[l->placed];
    double half = p->index + 1 < 10 ? 4.0 : 8.0;
    p->label_x = p->x + 13.0;
    p->label_y = p->y;
    for (double reach = 13.0; reach < 60.0; reach += 7.0)
        for (size_t k = 0; k < 8; k++) {
            double x = p->x + reach * around[k][0], y = p->y + reach * around[k][1];
            if (x - half < a->left + 2.0 || x + half > a->right - 2.0 || y < a->top + 8.0 ||
                y > a->bottom - 8.0 || taken(l, x, y, half))
                continue;
            p->label_x = x;
            p->label_y = y;
            l->placed++;
            return;
        }
    l->placed++;
}

static void find_points(layout *l, const json_t *results)
{
    const frame *a = l->frame;
    size_t i;
    json_t *r;
    json_array_foreach(results, i, r)
    {
        double x = json_number_value(json_object_get(r, "flop_per_byte"));
        double y = json_number_value(json_object_get(r, "tflop_per_s"));
        if (x > 0.0 && y > 0.0 && l->count < MOST_POINTS)
            l->points[l->count++] =
                (point){.x = at_x(a, log10(x)), .y = at_y(a, log10(y)), .index = i};
    }
}

static void draw_points(FILE *f, layout *l, const json_t *results)
{
    const point *points = l->points;
    size_t n = l->count;
    while (l->placed < n)
        place_number(l);
    for (size_t k = 0; k < n; k++)
        if (hypot(points[k].label_x - points[k].x, points[k].label_y - points[k].y) > 19.0)
            fprintf(f, "<path class=\"leader\" d=\"M%.1f %.1fL%.1f %.1f\"/>\n", points[k].x,
                    points[k].y, points[k].label_x, points[k].label_y);
    for (size_t k = 0; k < n; k++) {
        char us[REPORT_TEXT], tflops[REPORT_TEXT], gbps[REPORT_TEXT];
        const point *p = &points[k];
        const json_t *r = json_array_get(results, p->index);
        const char *op = json_string_value(json_object_get(r, "op"));
        const char *size = json_string_value(json_object_get(r, "size"));
        fprintf(f,
                "<circle class=\"%s\" cx=\"%.2f\" cy=\"%.2f\" r=\"5\" "
                "data-at=\"/ops/results/%zu\"><title>%zu: ",
                report_family(op ? op : ""), p->x, p->y, p->index, p->index + 1);
        report_html_text(f, op ? op : "");
        fprintf(f, ", %lld rows, ", json_integer_value(json_object_get(r, "rows")));
        report_html_text(f, size ? size : "");
        fprintf(f, ": %s us, %s TFLOP/s, %s GB/s</title></circle>\n",
                report_number_text(json_object_get(r, "us"), us),
                report_number_text(json_object_get(r, "tflop_per_s"), tflops),
                report_number_text(json_object_get(r, "gb_per_s"), gbps));
    }
    for (size_t k = 0; k < n; k++)
        fprintf(f, "<text class=\"mark\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">%zu</text>\n",
                points[k].label_x, points[k].label_y + 4.0, points[k].index + 1);
}

void report_plot_roofline(FILE *f, const json_t *root, bool narrow)
{
    frame a = frame_for(narrow, 500, 420);
    const json_t *results = report_at(root, "/ops/results");
    double read = rate_of(root, "read"), copy = rate_of(root, "copy");
    double matrix = rate_of(root, "f16 matrices, f32 sums");
    double f32 = rate_of(root, "f32 multiply-add");
    double widest = fmax(read, copy), peak = fmax(matrix, f32);
    if (!fit(&a, results, widest, peak))
        return;
    layout l = {.frame = &a};
    find_points(&l, results);
    begin(f, &a, narrow, "Roofline: arithmetic rate of each op over its arithmetic a byte");
    draw_decades(f, &a);
    label_axes(f, &a, "FLOP a byte moved", "TFLOP/s");
    if (read > 0.0)
        draw_bandwidth(f, &l, "read", read, peak, read >= copy);
    if (copy > 0.0)
        draw_bandwidth(f, &l, "copy", copy, peak, copy > read);
    if (matrix > 0.0)
        draw_peak(f, &l, "f16 matrices", matrix, widest, matrix >= f32);
    if (f32 > 0.0)
        draw_peak(f, &l, "f32", f32, widest, f32 > matrix);
    draw_points(f, &l, results);
    fputs("</svg>\n", f);
}

/* ---- curves over time ---- */

/* 1, 2 or 5 times a power of ten, so that about four fit. */
static double step_for(double range)
{
    double base = pow(10.0, floor(log10(range / 4.0)));
    double n = range / 4.0 / base;
    return base * (n > 5.0 ? 10.0 : n > 2.0 ? 5.0 : n > 1.0 ? 2.0 : 1.0);
}

static void draw_curve(FILE *f, const frame *a, const json_t *samples, const char *key, int number)
{
    size_t i;
    json_t *s;
    bool pen = false;
    fprintf(f, "<path class=\"curve c%d\" data-key=\"%s\" d=\"", number, key);
    json_array_foreach(samples, i, s)
    {
        const json_t *value = json_object_get(s, key);
        double x = json_number_value(json_object_get(s, "t_s")), y = json_number_value(value);
        bool there = json_is_number(value) && x >= a->x0 && y >= a->y0;
        if (there)
            fprintf(f, "%c%.2f %.2f", pen ? 'L' : 'M', at_x(a, x), at_y(a, y));
        pen = there;
    }
    fputs("\"/>\n", f);
}

static void draw_panel(FILE *f, const json_t *samples, bool narrow, const char *unit,
                       const char *const *keys, int count)
{
    frame a = frame_for(narrow, 230, 200);
    size_t i;
    json_t *s;
    a.x0 = a.y0 = 0.0;
    json_array_foreach(samples, i, s)
    {
        a.x1 = fmax(a.x1, json_number_value(json_object_get(s, "t_s")));
        for (int k = 0; k < count; k++)
            a.y1 = fmax(a.y1, json_number_value(json_object_get(s, keys[k])));
    }
    if (!(a.x1 > 0.0 && a.y1 > 0.0 && a.x1 < 1e9 && a.y1 < 1e12))
        return; /* nothing, or nothing of this world */
    double x_step = step_for(a.x1), y_step = step_for(a.y1);
    a.y1 = ceil(a.y1 / y_step * 1.0001) * y_step;
    begin(f, &a, narrow, unit);
    for (double t = 0.0; t <= a.x1 * 1.0001; t += x_step)
        fprintf(f, "<text x=\"%.1f\" y=\"%g\" text-anchor=\"%s\">%g</text>\n",
                fmin(at_x(&a, t), a.width - 2.0), a.bottom + a.font + 4.0,
                anchor_at(&a, at_x(&a, t)), t);
    for (double t = 0.0; t <= a.y1 * 1.0001; t += y_step) {
        fprintf(f, "<path class=\"grid\" d=\"M%g %.1fH%g\"/>", a.left, at_y(&a, t), a.right);
        fprintf(f, "<text x=\"%g\" y=\"%.1f\" text-anchor=\"end\">%g</text>\n", a.left - 6.0,
                at_y(&a, t) + 4.0, t);
    }
    label_axes(f, &a, "seconds", unit);
    for (int k = 0; k < count; k++)
        draw_curve(f, &a, samples, keys[k], k);
    fputs("</svg>\n", f);
}

void report_plot_sustained(FILE *f, const json_t *root, bool narrow)
{
    static const char *const rate[] = {"tokens_per_s"};
    const char *const clocks[] = {report_sensor_keys[SENSOR_DEVICE_CLOCK],
                                  report_sensor_keys[SENSOR_CPU_CLOCK]};
    const char *const heat[] = {report_sensor_keys[SENSOR_DEVICE_TEMPERATURE],
                                report_sensor_keys[SENSOR_CPU_TEMPERATURE]};
    const json_t *samples = report_at(root, "/sustained/samples");
    draw_panel(f, samples, narrow, "tokens/s", rate, 1);
    draw_panel(f, samples, narrow, "clock, MHz", clocks, 2);
    draw_panel(f, samples, narrow, "temperature, °C", heat, 2);
}
