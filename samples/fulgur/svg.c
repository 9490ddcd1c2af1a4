#include "svg.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>

enum { WIDTH = 800, HEIGHT = 480, LEFT = 84, RIGHT = 206, TOP = 72, BOTTOM = 62, DOT = 4 };

/* Readable on white and on black. */
static const char *const colours[SVG_SERIES] = {"#d97706", "#0891b2", "#db2777",
                                                "#65a30d", "#7c3aed", "#6b7280"};

typedef struct axis {
    double low, high;  /* logarithms, in units of a tick's base */
    double base;       /* 2 or 10 */
    double at, pixels; /* where `low` is, and how far `high` lies from it */
} axis;

static double place(const axis *a, double value)
{
    return a->at + a->pixels * (log(value) / log(a->base) - a->low) / (a->high - a->low);
}

/* From the power of the base below the least value to that above the largest. */
static void fit(axis *a, double least, double most)
{
    a->low = floor(log(least) / log(a->base) + 1e-9);
    a->high = ceil(log(most) / log(a->base) - 1e-9);
    if (a->high <= a->low)
        a->high = a->low + 1.0;
}

static bool range_of(const svg_plot *p, axis *x, axis *y)
{
    double limits[4] = {INFINITY, 0.0, INFINITY, 0.0};
    for (size_t s = 0; s < p->count; s++)
        for (size_t i = 0; i < p->series[s].n; i++) {
            double at = p->series[s].x[i], value = p->series[s].y[i];
            if (!(at > 0.0 && value > 0.0))
                continue;
            limits[0] = fmin(limits[0], at);
            limits[1] = fmax(limits[1], at);
            limits[2] = fmin(limits[2], value);
            limits[3] = fmax(limits[3], value);
        }
    if (limits[1] <= 0.0)
        return false;
    *x = (axis){.base = p->binary_x ? 2.0 : 10.0, .at = LEFT, .pixels = WIDTH - LEFT - RIGHT};
    *y = (axis){.base = 10.0, .at = HEIGHT - BOTTOM, .pixels = -(HEIGHT - TOP - BOTTOM)};
    fit(x, limits[0], limits[1]);
    fit(y, limits[2], limits[3]);
    return true;
}

static void text(FILE *f, const char *s)
{
    for (; *s; s++)
        switch (*s) {
        case '<':
            fputs("&lt;", f);
            break;
        case '>':
            fputs("&gt;", f);
            break;
        case '&':
            fputs("&amp;", f);
            break;
        default:
            fputc(*s, f);
        }
}

static void tick_text(FILE *f, double value, bool binary)
{
    static const char units[] = " kMG";
    int unit = 0;
    if (binary)
        for (; value >= 1024.0 && units[unit + 1]; unit++)
            value /= 1024.0;
    fprintf(f, "%g", value);
    if (unit)
        fputc(units[unit], f);
}

static void draw_axes(FILE *f, const svg_plot *p, const axis *x, const axis *y)
{
    double bottom = y->at, top = y->at + y->pixels, left = x->at, right = x->at + x->pixels;
    /* At most about ten labels. */
    double step = ceil((x->high - x->low) / 10.0);
    for (double t = x->low; t <= x->high + 1e-9; t += step) {
        double value = pow(x->base, t), at = place(x, value);
        fprintf(f, "<path class=\"grid\" d=\"M%.1f %.1f V%.1f\"/>\n", at, bottom, top);
        fprintf(f, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">", at, bottom + 20.0);
        tick_text(f, value, p->binary_x);
        fputs("</text>\n", f);
    }
    for (double t = y->low; t <= y->high + 1e-9; t += 1.0) {
        double value = pow(y->base, t), at = place(y, value);
        fprintf(f, "<path class=\"grid\" d=\"M%.1f %.1f H%.1f\"/>\n", left, at, right);
        fprintf(f, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"end\">%g</text>\n", left - 8.0,
                at + 4.0, value);
        for (int k = 2; k < 10 && t < y->high - 0.5; k++)
            fprintf(f, "<path class=\"fine\" d=\"M%.1f %.1f H%.1f\"/>\n", left, place(y, k * value),
                    right);
    }
    fprintf(f, "<path class=\"axis\" d=\"M%.1f %.1f V%.1f H%.1f\"/>\n", left, top, bottom, right);
    fprintf(f, "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">", (left + right) / 2.0,
            HEIGHT - 16);
    text(f, p->x_label);
    fprintf(f,
            "</text>\n<text transform=\"translate(22 %.1f) rotate(-90)\" "
            "text-anchor=\"middle\">",
            (top + bottom) / 2.0);
    text(f, p->y_label);
    fputs("</text>\n", f);
}

/* Names stand at the lines' ends, moved apart where they would overlap. */
static void draw_names(FILE *f, const svg_plot *p, const double *ends)
{
    enum { LINE = 17 };
    double placed[SVG_SERIES];
    for (size_t s = 0; s < p->count; s++) {
        double at = ends[s];
        for (bool moved = true; moved;) {
            moved = false;
            for (size_t k = 0; k < s; k++)
                if (fabs(at - placed[k]) < LINE) {
                    at = placed[k] + (at >= placed[k] ? LINE : -LINE) * 1.001;
                    if (at > HEIGHT - BOTTOM || at < TOP - 24)
                        at = placed[k] + (at >= placed[k] ? -LINE : LINE) * 1.001;
                    moved = fabs(at - ends[s]) < 10.0 * LINE;
                }
        }
        placed[s] = at;
        fprintf(f, "<text x=\"%d\" y=\"%.1f\" style=\"fill:%s;font-weight:600\">",
                WIDTH - RIGHT + 10, at + 4.0, colours[s]);
        text(f, p->series[s].name);
        fputs("</text>\n", f);
    }
}

static void draw_series(FILE *f, const svg_plot *p, const axis *x, const axis *y)
{
    double ends[SVG_SERIES] = {0};
    for (size_t s = 0; s < p->count; s++) {
        const svg_series *line = &p->series[s];
        fprintf(f, "<path fill=\"none\" stroke=\"%s\" stroke-width=\"2.5\"%s d=\"", colours[s],
                line->dashed ? " stroke-dasharray=\"7 5\"" : "");
        bool pen = false;
        for (size_t i = 0; i < line->n; i++) {
            if (!(line->y[i] > 0.0))
                continue;
            ends[s] = place(y, line->y[i]);
            fprintf(f, "%c%.1f %.1f ", pen ? 'L' : 'M', place(x, line->x[i]), ends[s]);
            pen = true;
        }
        fputs("\"/>\n", f);
        for (size_t i = 0; i < line->n; i++)
            if (line->y[i] > 0.0)
                fprintf(f, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"%d\" fill=\"%s\"/>\n",
                        place(x, line->x[i]), place(y, line->y[i]), DOT, colours[s]);
    }
    draw_names(f, p, ends);
}

bool svg_write(const char *path, const svg_plot *p)
{
    axis x, y;
    if (p->count > SVG_SERIES || !range_of(p, &x, &y)) {
        errno = EINVAL;
        return false;
    }
    FILE *f = fopen(path, "w");
    if (!f)
        return false;
    fprintf(f,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" "
            "font-family=\"sans-serif\" font-size=\"13\">\n<title>",
            WIDTH, HEIGHT);
    text(f, p->title);
    fputs("</title>\n<style>\n"
          "text { fill: #334155; }\n.head { font-size: 16px; font-weight: 700; }\n"
          ".axis { fill: none; stroke: #64748b; stroke-width: 1.5; }\n"
          ".grid { stroke: #94a3b8; stroke-opacity: 0.55; stroke-width: 1; }\n"
          ".fine { stroke: #94a3b8; stroke-opacity: 0.22; stroke-width: 1; }\n"
          "@media (prefers-color-scheme: dark) { text { fill: #cbd5e1; } }\n</style>\n",
          f);
    fprintf(f, "<text class=\"head\" x=\"%d\" y=\"24\">", LEFT);
    text(f, p->title);
    fprintf(f, "</text>\n<text x=\"%d\" y=\"43\">", LEFT);
    text(f, p->subtitle);
    fprintf(f, "</text>\n<text x=\"%d\" y=\"60\">", LEFT);
    text(f, p->source);
    fputs("</text>\n", f);
    draw_axes(f, p, &x, &y);
    draw_series(f, p, &x, &y);
    fputs("</svg>\n", f);
    bool failed = ferror(f) != 0;
    return fclose(f) == 0 && !failed;
}
