// The table of one level.
#include "level.h"

#define HEADRACE_TEXT_(name) #name
#define HEADRACE_TEXT(name) HEADRACE_TEXT_(name)

namespace headrace::HEADRACE_LEVEL {

extern const Kernels kKernels;
const Kernels kKernels = {
    .level = HEADRACE_TEXT(HEADRACE_LEVEL),
#if defined(__AMX_INT8__)
    .integer = "amx-bf16 for prompts, amx-int8 and avx512-vnni with 12-bit activations else",
#elif defined(__AVX512F__)
    .integer = "avx512-vnni, 12-bit activations",
#elif defined(__AVX2__)
    .integer = "avx2-maddubs, 12-bit activations",
#else
    .integer = nullptr,
#endif
    .norm = norm,
    .layer_norm = layer_norm,
    .activate = activate,
    .gate_multiply = gate_multiply,
    .cap = cap,
    .add = add,
#if defined(__AVX2__)
    .quantise = quantise,
    .integer_panels = integer_panels,
#else
    .quantise = nullptr,
    .integer_panels = nullptr,
#endif
#if defined(__AMX_INT8__)
    .tile_panels = tile_panels,
#else
    .tile_panels = nullptr,
#endif
#if defined(__AMX_BF16__)
    .round_to_brain = round_to_brain,
    .brain_panels = brain_panels,
#else
    .round_to_brain = nullptr,
    .brain_panels = nullptr,
#endif
    .float_panel = float_panel,
    .adapt = adapt,
    .rotate_and_write = rotate_and_write,
#if defined(__AVX512F__)
    .codes = true,
#else
    .codes = false,
#endif
    .attention_prepare = attention_prepare,
    .attention_part = attention_part,
    .attention_merge = attention_merge,
    .attention_finish = attention_finish,
#if defined(__AMX_BF16__)
    .attention_brains = attention_brains,
#else
    .attention_brains = nullptr,
#endif
    .largest = largest,
    .log_sum_exp = log_sum_exp,
    .mass = mass,
    .round_blocks = round_blocks,
};

}  // namespace headrace::HEADRACE_LEVEL
