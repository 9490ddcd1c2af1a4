/* Reports as files: numbers and JSON as they are written, read and found again. */
#include "report.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- values ---- */

json_t *report_number(double v)
{
    char text[REPORT_TEXT];
    if (!isfinite(v))
        return json_null();
    snprintf(text, sizeof text, "%.5g", v);
    return json_real(strtod(text, NULL));
}

const char *report_number_text(const json_t *value, char out[REPORT_TEXT])
{
    static const int digits[] = {5, 9, 17};
    out[0] = 0;
    if (json_is_integer(value))
        snprintf(out, REPORT_TEXT, "%lld", json_integer_value(value));
    if (!json_is_real(value))
        return out;
    double v = json_real_value(value), size = fabs(v);
    if (size >= 1e5 && size < 1e15 && v == floor(v)) {
        snprintf(out, REPORT_TEXT, "%.0f", v);
        return out;
    }
    for (size_t i = 0; i < sizeof digits / sizeof *digits; i++) {
        snprintf(out, REPORT_TEXT, "%.*g", digits[i], v);
        if (strtod(out, NULL) == v)
            break;
    }
    return out;
}

void report_set(json_t *object, const char *key, json_t *value)
{
    /* Without memory the key stays away, as it does where a device lacks what was asked. */
    (void)json_object_set_new(object, key, value);
}

void report_set_number(json_t *object, const char *key, double value)
{
    report_set(object, key, report_number(value));
}

json_t *report_string(const char *text)
{
    size_t bytes = strlen(text), at = 0;
    char *clean = malloc(FUL_UTF8_STREAM_ROOM(bytes) + FUL_UTF8_STREAM_ROOM(0));
    if (!clean)
        return json_null();
    ful_utf8_stream stream = {0};
    at = ful_utf8_stream_push(&stream, text, bytes, clean);
    at += ful_utf8_stream_finish(&stream, clean + at);
    json_t *out = json_stringn(clean, at);
    free(clean);
    return out;
}

const json_t *report_at(const json_t *root, const char *pointer)
{
    char key[128];
    while (root && *pointer == '/') {
        size_t n = strcspn(++pointer, "/");
        if (n >= sizeof key)
            return NULL;
        memcpy(key, pointer, n);
        key[n] = 0;
        pointer += n;
        root = json_is_array(root) ? json_array_get(root, (size_t)strtoull(key, NULL, 10))
                                   : json_object_get(root, key);
    }
    return root;
}

const char *report_base_name(const char *path)
{
    const char *name = path;
    for (const char *p = path; *p; p++)
        if ((*p == '/' || *p == '\\') && p[1])
            name = p + 1;
    return name;
}

/* ---- reading ---- */

json_t *report_load(const char *command, const char *path)
{
    json_error_t error;
    size_t bytes;
    char *text = cli_read_file(path, &bytes);
    if (!text)
        return NULL;
    json_t *root = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &error);
    free(text);
    if (!root)
        fprintf(stderr, "fulgur %s: %s:%d:%d: no JSON: %s\n", command, path, error.line,
                error.column, error.text);
    else if (!json_is_object(root)) {
        fprintf(stderr, "fulgur %s: %s: the JSON is no object\n", command, path);
        json_decref(root);
        root = NULL;
    }
    return root;
}

bool report_check(const char *command, const char *path, const json_t *root)
{
    static const struct {
        const char *at;
        json_type type;
        const char *what;
    } needs[] = {{"/device/name", JSON_STRING, "text"},   {"/device/driver", JSON_STRING, "text"},
                 {"/device/rates", JSON_ARRAY, "list"},   {"/ops/results", JSON_ARRAY, "list"},
                 {"/model/tests", JSON_ARRAY, "list"},    {"/sustained", JSON_OBJECT, "object"},
                 {"/correctness", JSON_OBJECT, "object"}, {"/versions", JSON_OBJECT, "object"}};
    const char *format = json_string_value(json_object_get(root, "format"));
    const json_t *version = json_object_get(root, "format_version");
    if (!format || strcmp(format, REPORT_FORMAT) != 0) {
        fprintf(stderr, "fulgur %s: %s: no report: 'format' is not \"%s\"\n", command, path,
                REPORT_FORMAT);
        return false;
    }
    if (json_integer_value(version) != REPORT_VERSION) {
        fprintf(stderr,
                "fulgur %s: %s: 'format_version' is %lld"
                "; this program reads %d\n",
                command, path, json_integer_value(version), REPORT_VERSION);
        return false;
    }
    for (size_t i = 0; i < sizeof needs / sizeof *needs; i++) {
        const json_t *value = report_at(root, needs[i].at);
        if (value && json_typeof(value) == needs[i].type)
            continue;
        fprintf(stderr, "fulgur %s: %s: no %s at '%s'\n", command, path, needs[i].what,
                needs[i].at);
        return false;
    }
    return true;
}

/* ---- writing ---- */

/* "<" is escaped, so that no text ends the script element that holds a copy. */
static void write_string(FILE *out, const json_t *value)
{
    char *text = json_dumps(value, JSON_ENCODE_ANY);
    for (const char *p = text ? text : "\"\""; *p; p++)
        if (*p == '<')
            fputs("\\u003c", out);
        else
            fputc(*p, out);
    free(text);
}

static bool is_flat(const json_t *value)
{
    size_t i;
    const char *key;
    json_t *inner;
    json_object_foreach((json_t *)value, key,
                        inner) if (json_is_object(inner) || json_is_array(inner)) return false;
    json_array_foreach(value, i,
                       inner) if (json_is_object(inner) || json_is_array(inner)) return false;
    return true;
}

static void new_line(FILE *out, bool flat, int depth)
{
    if (flat)
        return;
    fprintf(out, "\n%*s", depth, "");
}

static void write_value(FILE *out, const json_t *value, int depth)
{
    char text[REPORT_TEXT];
    bool flat = is_flat(value), list = json_is_array(value);
    const char *key, *comma = "";
    size_t i;
    json_t *inner;
    switch (json_typeof(value)) {
    case JSON_OBJECT:
    case JSON_ARRAY:
        fputc(list ? '[' : '{', out);
        json_object_foreach((json_t *)value, key, inner)
        {
            fputs(comma, out);
            new_line(out, flat, depth + 1);
            json_t *name = json_string(key);
            write_string(out, name);
            json_decref(name);
            fputs(": ", out);
            write_value(out, inner, depth + 1);
            comma = flat ? ", " : ",";
        }
        json_array_foreach(value, i, inner)
        {
            fputs(comma, out);
            new_line(out, flat, depth + 1);
            write_value(out, inner, depth + 1);
            comma = flat ? ", " : ",";
        }
        new_line(out, flat, depth);
        fputc(list ? ']' : '}', out);
        break;
    case JSON_STRING:
        write_string(out, value);
        break;
    case JSON_INTEGER:
    case JSON_REAL:
        fputs(report_number_text(value, text), out);
        break;
    case JSON_TRUE:
    case JSON_FALSE:
    case JSON_NULL:
        fputs(json_is_true(value) ? "true" : json_is_null(value) ? "null" : "false", out);
        break;
    }
}

void report_write_json(FILE *out, const json_t *root)
{
    write_value(out, root, 0);
    fputc('\n', out);
}

static char *part_of(const char *command, const char *path)
{
    static const char ending[] = ".part";
    size_t bytes = strlen(path) + sizeof ending;
    char *part = malloc(bytes);
    if (part)
        snprintf(part, bytes, "%s%s", path, ending);
    else
        fprintf(stderr, "fulgur %s: %s: out of memory\n", command, path);
    return part;
}

bool report_can_write(const char *command, const char *path)
{
    char *part = part_of(command, path);
    FILE *out = part ? fopen(part, "wb") : NULL;
    if (out) {
        fclose(out);
        remove(part);
    } else if (part) {
        fprintf(stderr, "fulgur %s: %s: %s\n", command, path, strerror(errno));
    }
    free(part);
    return out != NULL;
}

bool report_write(const char *command, const char *path,
                  void (*write)(FILE *out, const json_t *root), const json_t *root)
{
    char *part = part_of(command, path);
    FILE *out = part ? fopen(part, "wb") : NULL;
    bool good = out != NULL;
    int why = errno;
    if (good) {
        write(out, root);
        good = fflush(out) == 0 && !ferror(out);
        why = errno;
        if (fclose(out) != 0 && good) {
            good = false;
            why = errno;
        }
#ifdef _WIN32
        if (good)
            remove(path); /* rename does not replace there */
#endif
        if (good && rename(part, path) != 0) {
            good = false;
            why = errno;
        }
        if (!good)
            remove(part);
    }
    if (!good && part)
        fprintf(stderr, "fulgur %s: %s: %s\n", command, path, strerror(why));
    free(part);
    return good;
}
