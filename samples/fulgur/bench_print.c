/* fulgur bench model: its results as a table, CSV and JSON. */
#include "bench_model.h"

#include <inttypes.h>
#include <string.h>

static double mib(uint64_t bytes)
{
    return (double)bytes / 1048576.0;
}

static void test_name(const bench_test *t, char *out, size_t bytes)
{
    snprintf(out, bytes, "%s%u", t->decode ? "tg" : "pp", t->tokens);
}

double bench_weight_gbps(const bench_test *t)
{
    return t->weight_bytes * t->rate.median / 1e9;
}

static void print_head(const bench_run *b)
{
    const ful_device_info *d = ful_device_get_info(b->model.device);
    const ful_model_info *i = ful_model_get_info(b->model.model);
    const ful_plan *p = ful_model_get_plan(b->model.model);
    printf("device   %s (%s), %s\n", d->name, ful_device_kind_name(d->kind), d->driver);
    printf("model    %s: %u layers (%u softmax), hidden %u, %u experts top-%u of %u, vocabulary "
           "%u\n",
           b->name, i->block_count, i->softmax_block_count, i->hidden_size, i->expert_count,
           i->top_k, i->intermediate_size, i->vocab_size);
    printf("         %.1f M parameters, %.1f M of them active; %s weights, %.1f MiB of them for a "
           "token, %s arithmetic\n",
           (double)i->parameter_count / 1e6, (double)i->active_parameter_count / 1e6,
           ful_type_name(b->type), mib(i->active_weight_bytes),
           p->precision == FUL_PRECISION_F16 ? "f16" : "f32");
    printf("memory   %.1f MiB of weights, a session of %zu tokens in chunks of %u: %.1f states + "
           "%.1f keys + %.1f activations; %.1f in all of %.1f free\n",
           mib(p->weight_bytes), p->max_tokens, p->chunk_tokens, mib(p->state_bytes),
           mib(p->kv_bytes), mib(p->activation_bytes), mib(p->total_bytes),
           mib(p->available_bytes));
    printf("         %.1f MiB at most were held\n", mib(b->peak_bytes));
    printf("rates    read %.4g GB/s, copy %.4g GB/s, f16 matrices %.4g TFLOP/s (0: not there)\n",
           b->read / 1e9, b->copy / 1e9, b->matrix / 1e12);
    printf("load     device %.0f ms, weights %.0f ms, pipelines %.0f ms, session %.0f ms\n\n",
           (double)b->model.device_ns / 1e6, (double)b->model.weights_ns / 1e6,
           (double)b->model.pipelines_ns / 1e6, (double)b->model.session_ns / 1e6);
}

void bench_model_table(const bench_run *b)
{
    print_head(b);
    printf("%-8s %8s %12s %21s %10s %10s %10s %8s %6s %6s %6s %13s  %s\n", "test", "depth",
           "tokens/s", "least .. most", "GPU us/t", "CPU us/t", "host us/t", "GB/s", "read",
           "disp.", "subm.", "experts", "logits");
    for (uint32_t i = 0; i < b->test_count; i++) {
        const bench_test *t = &b->tests[i];
        char name[24], spread[48];
        test_name(t, name, sizeof name);
        snprintf(spread, sizeof spread, "%.1f .. %.1f", t->rate.least, t->rate.most);
        if (t->wrong) { /* no figure without a right answer */
            printf("%-8s %8u %12s %21s %77s  %s\n", name, t->depth, "-", "-", "", t->wrong);
            continue;
        }
        printf("%-8s %8u %12.1f %21s %10.2f %10.2f ", name, t->depth, t->rate.median, spread,
               t->gpu_ns / 1e3, t->cpu_ns / 1e3);
        if (t->decode)
            printf("%10.2f %8.1f %5.1f%% %6u %6u", t->host_ns / 1e3, bench_weight_gbps(t),
                   b->read > 0.0 ? bench_weight_gbps(t) * 1e11 / b->read : 0.0, t->dispatches,
                   t->submits);
        else
            printf("%10s %8s %6s %6s %6s", "", "", "", "", "");
        printf(" %7.1f, >= %-2u  same\n", t->experts, t->least_experts);
    }
    printf("\na token's time: GPU, 0 = no timestamps; CPU of the calling thread; host: outside the "
           "wait;\nGB/s: weights read for a token, and their share of the read rate; experts: "
           "distinct ones a layer, on average and "
           "at least;\nlogits: finite, and the same bits in each of %u runs\n",
           b->reps + 1);
}

void bench_model_ops(const bench_run *b)
{
    for (uint32_t i = 0; i < b->test_count; i++) {
        const bench_test *t = &b->tests[i];
        char name[24];
        test_name(t, name, sizeof name);
        double total = t->profiled_ns;
        if (t->op_count == 0) {
            printf("\n%s at depth %u: this device has no timestamps\n", name, t->depth);
            continue;
        }
        printf("\n%-28s %8s %12s %8s %10s %10s\n", "op", "calls", "us", "share", "GB/s", "TFLOP/s");
        for (uint32_t k = 0; k < t->op_count; k++) {
            const bench_op *op = &t->ops[k];
            double ns = op->ns ? (double)op->ns : 1.0;
            printf("%-28s %8" PRIu64 " %12.2f %7.1f%% %10.1f %10.2f\n", op->name, op->calls,
                   ns / 1e3, total > 0.0 ? 100.0 * ns / total : 0.0, op->bytes / ns,
                   op->flops / ns / 1e3);
        }
        printf("%-28s %8s %12.2f         of %u tokens, %s at depth %u\n", "sum", "", total / 1e3,
               t->profiled_tokens, name, t->depth);
    }
}

void bench_model_csv(const bench_run *b)
{
    const ful_device_info *d = ful_device_get_info(b->model.device);
    printf("device,driver,model,weights,test,tokens,depth,tokens_per_s,least,most,reps,gpu_us_per_"
           "token,cpu_us_per_token,host_us_per_token,weight_gb_per_s,dispatches,submits,experts,"
           "logits\n");
    for (uint32_t i = 0; i < b->test_count; i++) {
        const bench_test *t = &b->tests[i];
        printf("\"%s\",\"%s\",\"%s\",%s,%s,%u,%u,", d->name, d->driver, b->name,
               ful_type_name(b->type), t->decode ? "decode" : "prefill", t->tokens, t->depth);
        if (t->wrong)
            printf(",,,%u,,,,,,,,\"%s\"\n", b->reps, t->wrong);
        else
            printf("%.3f,%.3f,%.3f,%u,%.3f,%.3f,%.3f,%.3f,%u,%u,%.2f,same\n", t->rate.median,
                   t->rate.least, t->rate.most, b->reps, t->gpu_ns / 1e3, t->cpu_ns / 1e3,
                   t->host_ns / 1e3, bench_weight_gbps(t), t->decode ? t->dispatches : 0,
                   t->decode ? t->submits : 0, t->experts);
    }
}

static void json_text(const char *key, const char *text)
{
    printf("\"%s\": ", key);
    cli_print_json_string(text, strlen(text));
    printf(", ");
}

static void json_test(const bench_test *t, bool last)
{
    printf("  {\"kind\": \"%s\", \"tokens\": %u, \"depth\": %u, \"ok\": %s, ",
           t->decode ? "decode" : "prefill", t->tokens, t->depth, t->wrong ? "false" : "true");
    if (t->wrong) {
        json_text("wrong", t->wrong);
    } else {
        printf("\"tokens_per_s\": %.3f, \"least\": %.3f, \"most\": %.3f, ", t->rate.median,
               t->rate.least, t->rate.most);
        printf("\"gpu_us_per_token\": %.3f, \"cpu_us_per_token\": %.3f, ", t->gpu_ns / 1e3,
               t->cpu_ns / 1e3);
        if (t->decode)
            printf("\"host_us_per_token\": %.3f, \"weight_gb_per_s\": %.3f, \"dispatches\": %u, "
                   "\"submits\": %u, ",
                   t->host_ns / 1e3, bench_weight_gbps(t), t->dispatches, t->submits);
    }
    printf("\"experts\": %.2f, \"least_experts\": %u, \"profiled_tokens\": %u, \"ops\": [",
           t->experts, t->least_experts, t->profiled_tokens);
    for (uint32_t k = 0; k < t->op_count; k++) {
        const bench_op *op = &t->ops[k];
        printf("%s\n    {\"name\": \"%s\", \"calls\": %" PRIu64 ", \"ns\": %" PRIu64
               ", \"bytes\": %.0f, \"flops\": %.0f}",
               k ? "," : "", op->name, op->calls, op->ns, op->bytes, op->flops);
    }
    printf("]}%s\n", last ? "" : ",");
}

void bench_model_json(const bench_run *b)
{
    const ful_device_info *d = ful_device_get_info(b->model.device);
    const ful_model_info *i = ful_model_get_info(b->model.model);
    const ful_plan *p = ful_model_get_plan(b->model.model);
    printf("{");
    json_text("device", d->name);
    json_text("driver", d->driver);
    json_text("model", b->name);
    printf("\n \"weights\": \"%s\", \"precision\": \"%s\", \"layers\": %u, \"softmax_layers\": %u, "
           "\"hidden\": %u, \"experts\": %u, \"top_k\": %u, \"width\": %u, \"vocab\": %u,\n",
           ful_type_name(b->type), p->precision == FUL_PRECISION_F16 ? "f16" : "f32",
           i->block_count, i->softmax_block_count, i->hidden_size, i->expert_count, i->top_k,
           i->intermediate_size, i->vocab_size);
    printf(" \"parameters\": %" PRIu64 ", \"active_parameters\": %" PRIu64
           ", \"active_weight_bytes\": %" PRIu64 ",\n",
           i->parameter_count, i->active_parameter_count, i->active_weight_bytes);
    printf(" \"weight_bytes\": %" PRIu64 ", \"state_bytes\": %" PRIu64 ", \"kv_bytes\": %" PRIu64
           ", \"activation_bytes\": %" PRIu64 ", \"total_bytes\": %" PRIu64
           ", \"available_bytes\": %" PRIu64 ", \"peak_bytes\": %" PRIu64
           ", \"chunk_tokens\": %u, \"context\": %zu,\n",
           p->weight_bytes, p->state_bytes, p->kv_bytes, p->activation_bytes, p->total_bytes,
           p->available_bytes, b->peak_bytes, p->chunk_tokens, p->max_tokens);
    printf(" \"read_gb_per_s\": %.3f, \"copy_gb_per_s\": %.3f, \"matrix_tflop_per_s\": %.3f,\n",
           b->read / 1e9, b->copy / 1e9, b->matrix / 1e12);
    printf(" \"device_ms\": %.3f, \"weights_ms\": %.3f, \"pipelines_ms\": %.3f, \"session_ms\": "
           "%.3f, \"reps\": %u, \"tests\": [\n",
           (double)b->model.device_ns / 1e6, (double)b->model.weights_ns / 1e6,
           (double)b->model.pipelines_ns / 1e6, (double)b->model.session_ns / 1e6, b->reps);
    for (uint32_t k = 0; k < b->test_count; k++)
        json_test(&b->tests[k], k + 1 == b->test_count);
    printf("]}\n");
}
