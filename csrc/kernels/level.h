// What the files of one level share: the declarations behind the level's table of kernels.
#pragma once

#include "kernels.h"
#include "vector.h"

namespace headrace::HEADRACE_LEVEL {

void norm(float* out, float* residual, const float* add, float add_scale, const float* weight, float epsilon,
          bool accumulate, std::size_t width);
void layer_norm(float* out, float* residual, const float* add, float add_scale, const float* weight, const float* bias,
                float epsilon, std::size_t width);
void activate(float* out, const float* source, Gate kind, std::size_t width);
void gate_multiply(float* out, const float* gate, const float* up, Gate kind, std::size_t width);
void cap(float* values, std::size_t count, float scale, float cap);
void add(float* out, const float* bias, std::size_t width);
std::size_t largest(const float* values, std::size_t count);
float log_sum_exp(const float* values, std::size_t count, float shift);
double mass(const float* values, std::size_t count, float top, float temperature);
void quantise(const float* source, std::size_t blocks, const Activations& out, std::size_t row, std::size_t first);
void integer_panels(const IntegerPanels& job);
void tile_panels(const IntegerPanels& job, float* scratch);
void round_to_brain(const float* source, std::size_t blocks, const Activations& out, std::size_t row, std::size_t first);
void halve(const float* source, std::size_t blocks, const Activations& out, std::size_t row, std::size_t first);
void brain_panels(const BrainPanels& job, float* scratch);
void half_panels(const HalfPanels& job, float* scratch);
void float_panel(const FloatPanel& job);
void adapt(const LowRankRows& job);
void rotate_and_write(const RotateRow& job);
void attention_prepare(const AttentionTile& job);
void attention_part(const AttentionTile& job, std::size_t begin, std::size_t end, float* state);
void attention_merge(const AttentionTile& job, float* into, float* part);
void attention_finish(const AttentionTile& job, float* state);
void attention_brains(const AttentionTile& job);
bool round_blocks(Format from, const std::uint8_t* source, std::size_t blocks, Format to, std::uint8_t* out);

}  // namespace headrace::HEADRACE_LEVEL
