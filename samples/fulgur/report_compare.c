/* fulgur bench compare: its results as text and as a page. */
#include "report.h"

#include <string.h>

const char *report_letter(size_t file)
{
    static const char letters[REPORT_MOST_FILES][2] = {"A", "B", "C", "D", "E", "F", "G", "H"};
    return file < REPORT_MOST_FILES ? letters[file] : "?";
}

static const char *shown(const json_t *value, char out[REPORT_TEXT])
{
    return report_number_text(value, out)[0] ? out : "-";
}

void report_compare_text(const json_t *root)
{
    char text[REPORT_TEXT];
    const json_t *figures = json_object_get(root, "figures");
    size_t i, k, widest = 20, count = json_array_size(json_object_get(root, "files"));
    json_t *o, *value;
    json_array_foreach(json_object_get(root, "files"), k, o)
    {
        const char *device = json_string_value(json_object_get(o, "device"));
        printf("%s  %s: %s\n", report_letter(k), json_string_value(json_object_get(o, "path")),
               device ? device : "device not named");
    }
    json_array_foreach(json_object_get(root, "differences"), i, o)
    {
        printf("differs: %s:", json_string_value(json_object_get(o, "what")));
        json_array_foreach(json_object_get(o, "values"), k, value)
            printf(" %s %s%s", report_letter(k),
                   json_is_string(value) ? json_string_value(value) : shown(value, text),
                   k + 1 < count ? ";" : "\n");
    }
    json_array_foreach(json_object_get(root, "wrong"), i, value)
        printf("wrong result, no figure: %s\n", json_string_value(value));
    json_array_foreach(figures, i, o)
    {
        size_t bytes = json_string_length(json_object_get(o, "what"));
        widest = bytes > widest ? bytes : widest;
    }
    printf("\n%-*s %-8s", (int)widest, "what", "unit");
    for (k = 0; k < count; k++)
        printf(" %12s", report_letter(k));
    for (k = 1; k < count; k++)
        printf("    %s to A", report_letter(k));
    printf("\n");
    json_array_foreach(figures, i, o)
    {
        printf("%-*s %-8s", (int)widest, json_string_value(json_object_get(o, "what")),
               json_string_value(json_object_get(o, "unit")));
        json_array_foreach(json_object_get(o, "values"), k, value)
            printf(" %12s", shown(value, text));
        json_array_foreach(json_object_get(o, "times_as_fast"), k, value)
        {
            if (json_is_number(value))
                printf(" %8.3fx", json_number_value(value));
            else
                printf(" %9s", "-");
        }
        printf("\n");
    }
    printf("\ntimes as fast as A, geometric means:");
    json_array_foreach(json_object_get(root, "means"), i, o)
    {
        printf("%s %s (%lld)", i ? ";" : "", json_string_value(json_object_get(o, "section")),
               json_integer_value(json_object_get(o, "figures")));
        json_array_foreach(json_object_get(o, "times_as_fast"), k, value)
            printf(" %s", shown(value, text));
    }
    printf("%s\n", json_array_size(json_object_get(root, "means")) ? "" : " nothing in common");
}

/* As the page of a report shows it: numbers at their place in the JSON. */
static void html_numbers(FILE *f, const char *list, size_t index, const char *key,
                         const json_t *values, bool ratios)
{
    size_t k;
    json_t *value;
    json_array_foreach(values, k, value)
    {
        char text[REPORT_TEXT];
        double v = json_number_value(value);
        const char *colour = ratios && v >= 1.05 ? " best" : ratios && v <= 0.95 ? " worse" : "";
        if (report_number_text(value, text)[0])
            fprintf(f, "<td class=\"n%s\" data-at=\"/%s/%zu/%s/%zu\">%s</td>",
                    v > 0.0 ? colour : "", list, index, key, k, text);
        else
            fputs("<td class=\"n none\">–</td>", f);
    }
}

static void html_cell(FILE *f, const json_t *value)
{
    char text[REPORT_TEXT];
    fputs("<td>", f);
    report_html_text(f, json_is_string(value) ? json_string_value(value)
                                              : report_number_text(value, text));
    fputs("</td>", f);
}

void report_compare_html(FILE *f, const json_t *root)
{
    size_t i, k, count = json_array_size(json_object_get(root, "files"));
    json_t *o, *value;
    fprintf(f,
            "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n<meta "
            "name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>fulgur: "
            "comparison</title>\n<style>\n%s</style></head>\n<body><main><h1>Comparison</h1>\n"
            "<section><h2>Files</h2><dl>",
            report_html_style);
    json_array_foreach(json_object_get(root, "files"), k, o)
    {
        const char *path = json_string_value(json_object_get(o, "path"));
        const char *device = json_string_value(json_object_get(o, "device"));
        fprintf(f, "<dt>%s</dt><dd>", report_letter(k));
        report_html_text(f, device ? device : "device not named");
        fputs(" <span class=\"soft\">", f);
        report_html_text(f, path ? path : "");
        fputs("</span></dd>\n", f);
    }
    fputs(
        "</dl></section>\n<section><h2>What differs</h2><div class=\"scroll wrap\"><table><tr><th>"
        "what</th>",
        f);
    for (k = 0; k < count; k++)
        fprintf(f, "<th>%s</th>", report_letter(k));
    fputs("</tr>\n", f);
    json_array_foreach(json_object_get(root, "differences"), i, o)
    {
        fputs("<tr>", f);
        html_cell(f, json_object_get(o, "what"));
        json_array_foreach(json_object_get(o, "values"), k, value) html_cell(f, value);
        fputs("</tr>\n", f);
    }
    fputs("</table></div>\n", f);
    json_array_foreach(json_object_get(root, "wrong"), i, value)
    {
        fputs("<p class=\"verdict wrong\">wrong result, no figure: ", f);
        report_html_text(f, json_string_value(value));
        fputs("</p>\n", f);
    }
    fputs("</section>\n<section><h2>Figures</h2><p class=\"soft\">The last columns: how many times "
          "as fast as A.</p><div class=\"scroll wrap\"><table><tr><th>what</th><th>unit</th>",
          f);
    for (k = 0; k < count; k++)
        fprintf(f, "<th class=\"n\">%s</th>", report_letter(k));
    for (k = 1; k < count; k++)
        fprintf(f, "<th class=\"n\">%s to A</th>", report_letter(k));
    fputs("</tr>\n", f);
    json_array_foreach(json_object_get(root, "means"), i, o)
    {
        fputs("<tr><td>geometric mean, ", f);
        report_html_text(f, json_string_value(json_object_get(o, "section")));
        fprintf(f, "</td><td></td><td colspan=\"%zu\"></td>", count);
        html_numbers(f, "means", i, "times_as_fast", json_object_get(o, "times_as_fast"), true);
        fputs("</tr>\n", f);
    }
    json_array_foreach(json_object_get(root, "figures"), i, o)
    {
        fputs("<tr>", f);
        html_cell(f, json_object_get(o, "what"));
        html_cell(f, json_object_get(o, "unit"));
        html_numbers(f, "figures", i, "values", json_object_get(o, "values"), false);
        html_numbers(f, "figures", i, "times_as_fast", json_object_get(o, "times_as_fast"), true);
        fputs("</tr>\n", f);
    }
    fputs("</table></div></section></main>\n<script type=\"application/json\" id=\"report\">\n", f);
    report_write_json(f, root);
    fputs("</script></body></html>\n", f);
}
