/* fulgur bench model --first-token: how long after the start of a program its first token comes. */
#include "bench_model.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#ifndef _WIN32
#include <dirent.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#endif

/* ---- in this process ---- */

/* Time since the system started this process, of which main() sees only the end; 0: unknown. The
 * kernel tells it in hundredths of a second. */
static uint64_t process_age_ns(void)
{
#if defined(__linux__) && defined(_SC_CLK_TCK)
    char text[1024];
    FILE *f = fopen("/proc/self/stat", "r");
    size_t n = f ? fread(text, 1, sizeof text - 1, f) : 0;
    if (f)
        fclose(f);
    text[n] = 0;
    /* Fields are counted from behind the name, which may hold anything. */
    const char *p = strrchr(text, ')');
    for (int field = 2; p && field < 22; field++)
        p = strchr(p + 1, ' ');
    struct timespec now;
    long tick = sysconf(_SC_CLK_TCK);
    FILE *up = fopen("/proc/uptime", "r");
    double uptime = 0.0;
    if (up) {
        if (fscanf(up, "%lf", &uptime) != 1)
            uptime = 0.0;
        fclose(up);
    }
    if (!p || tick <= 0 || uptime <= 0.0 || clock_gettime(CLOCK_MONOTONIC, &now) != 0)
        return 0;
    double age = uptime - (double)strtoull(p + 1, NULL, 10) / (double)tick;
    return age > 0.0 ? (uint64_t)(age * 1e9) : 1;
#else
    return 0;
#endif
}

typedef struct first {
    uint64_t first_ns, second_ns;
} first;

static bool note_token(void *ctx, int32_t token)
{
    first *f = ctx;
    (void)token;
    if (!f->first_ns) {
        f->first_ns = cli_now_ns();
        return true;
    }
    f->second_ns = cli_now_ns();
    return false;
}

static ful_result feed_prompt(cli_model *m, uint32_t prompt, uint64_t seed, first *f)
{
    uint32_t vocab = ful_model_get_info(m->model)->vocab_size;
    int32_t *tokens = malloc((prompt + 1) * sizeof *tokens);
    if (!tokens)
        return FUL_ERR_HOST_MEMORY;
    for (uint32_t i = 0; i < prompt; i++)
        tokens[i] = bench_token(seed, i, vocab);
    int32_t never = (int32_t)vocab; /* no token: nothing stops the text */
    ful_result r = cli_prefill(m, tokens, prompt);
    if (r == FUL_OK)
        r = ful_generate(
            m->session,
            ful_generate_params(.max_tokens = 2, .stop_tokens = &never, .n_stop_tokens = 1),
            note_token, f, NULL);
    free(tokens);
    return r;
}

int bench_first_here(const bench_first *p)
{
    cli_model *m = p->model;
    uint32_t prompt = p->prompt ? p->prompt : 1;
    first f = {0};
    uint64_t start = cli_now_ns(), before = process_age_ns();
    int code = cli_open_model(m, p->path, prompt + 8);
    if (code != CLI_OK)
        return code;
    uint64_t loaded = cli_now_ns();
    if (feed_prompt(m, prompt, p->seed, &f) != FUL_OK) {
        code = cli_interrupted() ? CLI_INTERRUPTED : cli_fail("first token");
        cli_close_model(m);
        return code;
    }
    double all = (double)(f.first_ns - start + before) / 1e6;
    double after = (double)(f.first_ns - loaded + m->session_ns) / 1e6;
    const ful_device_info *d = ful_device_get_info(m->device);
    FILE *out = p->out ? p->out : stdout;
    if (p->json) {
        fprintf(out, "{\"device\": ");
        cli_write_json_string(out, d->name, strlen(d->name));
        fprintf(out,
                ", \"prompt\": %u, \"process_ms\": %.3f, \"after_load_ms\": %.3f, \"device_ms\": "
                "%.3f, \"weights_ms\": %.3f, \"pipelines_ms\": %.3f, \"session_ms\": %.3f, "
                "\"second_token_ms\": %.3f}\n",
                prompt, all, after, (double)m->device_ns / 1e6, (double)m->weights_ns / 1e6,
                (double)m->pipelines_ns / 1e6, (double)m->session_ns / 1e6,
                (double)(f.second_ns - f.first_ns) / 1e6);
    } else {
        fprintf(out,
                "first token %.0f ms after the process began%s: device %.0f, weights %.0f, "
                "pipelines %.0f;\nthen, from the model's load returning, %.1f ms: session %.1f, "
                "prompt of %u tokens and first token %.1f; second token %.1f ms later\n",
                all, before ? "" : " its main()", (double)m->device_ns / 1e6,
                (double)m->weights_ns / 1e6, (double)m->pipelines_ns / 1e6, after,
                (double)m->session_ns / 1e6, prompt, (double)(f.first_ns - loaded) / 1e6,
                (double)(f.second_ns - f.first_ns) / 1e6);
    }
    cli_close_model(m);
    return CLI_OK;
}

/* ---- in processes of their own ---- */

#ifdef _WIN32

int bench_first_both(const bench_first *f)
{
    (void)f;
    fprintf(stderr, "fulgur bench model: --first-token both needs a POSIX system\n");
    return CLI_FAILED;
}

#else

static void remove_folder(const char *path)
{
    DIR *dir = opendir(path);
    for (struct dirent *e; dir && (e = readdir(dir));) {
        char inner[4096];
        struct stat info;
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
            continue;
        if (snprintf(inner, sizeof inner, "%s/%s", path, e->d_name) >= (int)sizeof inner)
            continue;
        if (lstat(inner, &info) == 0 && S_ISDIR(info.st_mode))
            remove_folder(inner);
        else
            remove(inner);
    }
    if (dir)
        closedir(dir);
    rmdir(path);
}

/* The work in a child, which inherits nothing of Vulkan: this process has not touched it. */
static int run_child(const bench_first *f, const char *cache)
{
    fflush(NULL); /* or the child would write what is pending once more */
    pid_t child = fork();
    if (child < 0) {
        fprintf(stderr, "fulgur: fork: %s\n", strerror(errno));
        return CLI_FAILED;
    }
    if (child == 0) {
        /* This program's cache and the drivers' own. */
        static const char *const names[] = {"XDG_CACHE_HOME", "__GL_SHADER_DISK_CACHE_PATH",
                                            "MESA_SHADER_CACHE_DIR"};
        for (size_t i = 0; i < sizeof names / sizeof *names; i++)
            setenv(names[i], cache, 1);
        exit(bench_first_here(f));
    }
    int status = 0;
    while (waitpid(child, &status, 0) < 0)
        if (errno != EINTR)
            return CLI_FAILED;
    return WIFEXITED(status) ? WEXITSTATUS(status) : CLI_FAILED;
}

int bench_first_both(const bench_first *f)
{
    static const char *const runs[] = {"cold", "warm"};
    const char *tmp = getenv("TMPDIR");
    char cache[4096];
    FILE *out = f->out ? f->out : stdout;
    snprintf(cache, sizeof cache, "%s/fulgur-bench.XXXXXX", tmp && *tmp ? tmp : "/tmp");
    if (!mkdtemp(cache)) {
        fprintf(stderr, "fulgur: %s: %s\n", cache, strerror(errno));
        return CLI_FAILED;
    }
    int code = CLI_OK;
    for (int i = 0; i < 2 && code == CLI_OK && !cli_interrupted(); i++) {
        if (f->json)
            fprintf(out, "%s\"%s\": ", i ? ", " : "{", runs[i]);
        else
            fprintf(out, "%s pipeline cache: ", runs[i]);
        code = run_child(f, cache);
    }
    if (f->json && code == CLI_OK)
        fprintf(out, "}\n");
    remove_folder(cache);
    return cli_interrupted() ? CLI_INTERRUPTED : code;
}

#endif
