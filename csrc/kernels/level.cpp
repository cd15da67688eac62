// The table of one level.
#include "level.h"

#define HEADRACE_TEXT_(name) #name
#define HEADRACE_TEXT(name) HEADRACE_TEXT_(name)

namespace headrace::HEADRACE_LEVEL {

extern const Kernels kKernels;
const Kernels kKernels = {
    .level = HEADRACE_TEXT(HEADRACE_LEVEL),
#if defined(__AVX512F__)
    .vectors = "avx512",
    .integer = "avx512-vnni, 12-bit activations",
#elif defined(__AVX2__)
    .vectors = "avx2",
    .integer = "avx2-maddubs, 12-bit activations",
#else
    .vectors = "portable",
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
    .half_panels = half_panels,
    .halve = halve,
#else
    .round_to_brain = nullptr,
    .brain_panels = nullptr,
    .half_panels = nullptr,
    .halve = nullptr,
#endif
    .float_panel = float_panel,
    .adapt = adapt,
    .rotate_and_write = rotate_and_write,
#if defined(__AMX_INT8__)
    .codes = "amx-int8 and avx512-vnni",
#elif defined(__AVX512F__)
    .codes = "avx512-vnni",
#else
    .codes = nullptr,
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
