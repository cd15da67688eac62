// What Python calls formats, activations and poolings.
#pragma once

#include <map>
#include <stdexcept>
#include <string>

#include "program.h"

namespace headrace {

inline Format format_of(const std::string& name) {
  for (int i = 0; i < kFormats; ++i) {
    if (name == kFormatSizes[i].name) return static_cast<Format>(i);
  }
  throw std::invalid_argument("there is no weight format \"" + name + "\"");
}

inline Gate gate_of(const std::string& name) {
  const std::map<std::string, Gate> gates = {{"silu", Gate::Silu}, {"gelu_tanh", Gate::GeluTanh}, {"gelu", Gate::Gelu},
                                             {"relu", Gate::Relu}, {"tanh", Gate::Tanh}};
  const auto found = gates.find(name);
  if (found == gates.end()) throw std::invalid_argument("there is no activation \"" + name + "\"");
  return found->second;
}

inline Pooling pooling_of(const std::string& name) {
  if (name != "first" && name != "last" && name != "mean") {
    throw std::invalid_argument("there is no pooling \"" + name + "\"");
  }
  return name == "first" ? Pooling::First : name == "last" ? Pooling::Last : Pooling::Mean;
}

}  // namespace headrace
