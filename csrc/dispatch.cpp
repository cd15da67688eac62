// Level selection by CPU feature. The avx512 level needs VNNI; a processor without it takes avx2. The
// amx level is avx512 with tiles for many rows.
#include "dispatch.h"

#include <stdexcept>

#if defined(HEADRACE_X86) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace headrace {

namespace portable {
extern const Kernels kKernels;
}
#if defined(HEADRACE_X86)
namespace avx2 {
extern const Kernels kKernels;
}
namespace avx512 {
extern const Kernels kKernels;
}
namespace amx {
extern const Kernels kKernels;
}

namespace {

// Whether the processor has the tiles and the kernel lets this process use them: a thread's tile state
// is large, so Linux wants to be asked, once a process.
bool have_tiles() {
#if defined(__linux__)
  static const bool permitted = [] {
    constexpr unsigned kBrain = 1u << 22, kTile = 1u << 24, kInt8 = 1u << 25;  // of leaf 7; not every compiler knows their names
    constexpr long kRequestPermission = 0x1023, kTileData = 18;
    unsigned a, b, c, features = 0;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &features)) return false;
    if (!(features & kBrain) || !(features & kTile) || !(features & kInt8)) return false;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  }();
  return permitted;
#else
  return false;
#endif
}

}  // namespace

#endif

std::vector<const Kernels*> available_levels() {
  std::vector<const Kernels*> levels;
#if defined(HEADRACE_X86)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512vnni");
  const bool brains = __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vbmi");
  if (avx512 && brains && have_tiles()) levels.push_back(&amx::kKernels);
  if (avx512) levels.push_back(&avx512::kKernels);
  if (avx2) levels.push_back(&avx2::kKernels);
#endif
  levels.push_back(&portable::kKernels);
  return levels;
}

const Kernels& find_level(const std::string& name) {
  std::string known;
  for (const Kernels* level : available_levels()) {
    if (name.empty() || name == level->level) return *level;
    known += known.empty() ? level->level : std::string(", ") + level->level;
  }
  throw std::invalid_argument("level: this processor runs " + known + ", not \"" + name + "\"");
}

}  // namespace headrace
