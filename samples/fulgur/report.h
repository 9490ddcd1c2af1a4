/* The parts of `fulgur bench report` and `fulgur bench compare`. */
#ifndef FULGUR_SAMPLES_REPORT_H
#define FULGUR_SAMPLES_REPORT_H

#include <jansson.h>

#include "bench_model.h"
#include "bench_ops.h"

#define REPORT_FORMAT "fulgur bench report"
enum { REPORT_VERSION = 1 };

/* ---- report_file.c: values, files ---- */

/* A number with five significant digits, so that the page can show all that the JSON holds; null
 * if v is not finite. */
json_t *report_number(double v);
enum { REPORT_TEXT = 32 };
/* The same digits as text; "" if value is no number. */
const char *report_number_text(const json_t *value, char out[REPORT_TEXT]);
/* Sets a key to a value whose reference it takes. */
void report_set(json_t *object, const char *key, json_t *value);
void report_set_number(json_t *object, const char *key, double value); /* as report_number */
const char *report_base_name(const char *path); /* what stands behind the last separator */
json_t *report_string(const char *text);        /* bytes that are no UTF-8 become U+FFFD */

/* Value at "/a/b/0"; NULL if there is none. */
const json_t *report_at(const json_t *root, const char *pointer);

/* The object in the file; NULL after printing "fulgur COMMAND: FILE: ...". */
json_t *report_load(const char *command, const char *path);

/* False after printing what the file lacks to be a report. */
bool report_check(const char *command, const char *path, const json_t *root);

/* False after printing why a file can't be made there. */
bool report_can_write(const char *command, const char *path);
/* Writes to a name beside `path` and renames: there is never half a file. False after printing
 * which file and why. */
bool report_write(const char *command, const char *path,
                  void (*write)(FILE *out, const json_t *root), const json_t *root);
void report_write_json(FILE *out, const json_t *root);

/* ---- report_sensors.c: what the system tells about clocks and temperatures ---- */

typedef enum report_sensor {
    SENSOR_DEVICE_CLOCK, /* MHz */
    SENSOR_DEVICE_TEMPERATURE,
    SENSOR_CPU_CLOCK, /* MHz, mean of all */
    SENSOR_CPU_TEMPERATURE,
    SENSOR_COUNT
} report_sensor;
typedef struct report_sensors report_sensors;
report_sensors *report_sensors_open(const ful_device_info *device); /* NULL: no memory */
void report_sensors_close(report_sensors *s);
bool report_sensors_read(const report_sensors *s, report_sensor which, double *value);
/* Where it is read; NULL: not available. */
const char *report_sensors_source(const report_sensors *s, report_sensor which);
extern const char *const report_sensor_keys[SENSOR_COUNT];

/* ---- report_measure.c: measurements as JSON ---- */

json_t *report_versions(const ful_device_info *device);
json_t *report_device(ful_device *device);
json_t *report_ops(ful_device *device, const json_t *rates, uint32_t seed, bool quick,
                   uint64_t until_ns);
json_t *report_model(const bench_run *b);
/* report_sustained.c: a session of b->model generates for `seconds`; NULL after printing what went
 * wrong. */
json_t *report_sustained(bench_run *b, double seconds);
/* Greedy text after a fixed prompt; for models with a tokenizer beside them. */
json_t *report_greedy(bench_run *b, const char *path);
/* Takes `greedy`, which may be NULL. */
json_t *report_correctness(const json_t *root, json_t *greedy);

/* ---- report_compare.c: what bench_compare.c found, as text and as a page ---- */

enum { REPORT_MOST_FILES = 8 };
const char *report_letter(size_t file); /* "A", "B", ... */
void report_compare_text(const json_t *root);
void report_compare_html(FILE *out, const json_t *root);

/* ---- report_html.c, report_plot.c ---- */

void report_write_html(FILE *out, const json_t *root);
void report_html_text(FILE *out, const char *text); /* escaped */
extern const char report_html_style[];
void report_plot_roofline(FILE *out, const json_t *root, bool narrow);
/* Curves of the sustained run over time. */
void report_plot_sustained(FILE *out, const json_t *root, bool narrow);
/* Colour class of an op's family: "f0" .. "f4". */
const char *report_family(const char *op);

#endif
