// Which instruction set runs: the best that the machine supports, or the one that FASTDIFF_ISA names. FASTDIFF_EXACT=1
// leaves out those that multiply in bfloat16 terms.
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#include "fastdiff/kernels.h"

#if defined(FASTDIFF_HAS_AMX) && !defined(FASTDIFF_EMULATE_AMX)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#if defined(_MSC_VER) && (defined(_M_X64) || defined(_M_IX86))
#include <immintrin.h>
#include <intrin.h>
#endif

namespace fastdiff {

#define FASTDIFF_TABLE(isa)   \
  namespace isa {             \
  extern const Kernels table; \
  }
FASTDIFF_TABLE(baseline)
#if defined(FASTDIFF_HAS_X86)
FASTDIFF_TABLE(avx2)
FASTDIFF_TABLE(avx512)
#endif
#if defined(FASTDIFF_HAS_NEON)
FASTDIFF_TABLE(neon)
#endif
#if defined(FASTDIFF_HAS_LOW_PRECISION)
namespace avx512_bfloat16 {
FASTDIFF_BFLOAT16_KERNELS(FASTDIFF_DECLARE)
}
namespace avx512_vnni {
FASTDIFF_INT8_KERNELS(FASTDIFF_DECLARE)
}
#endif
#if defined(FASTDIFF_HAS_AMX)
#define FASTDIFF_AMX_KERNELS(KERNEL)      \
  KERNEL(AttentionUnits, attention_units) \
  KERNEL(AttentionKernel, attention)      \
  FASTDIFF_MATRIX_KERNELS(KERNEL)
namespace amx {
FASTDIFF_AMX_KERNELS(FASTDIFF_DECLARE)
}
#endif

namespace {

#if defined(FASTDIFF_HAS_X86)
#if defined(_MSC_VER)
bool cpu_has(bool avx512) {
  int leaf1[4], leaf7[4];
  __cpuidex(leaf1, 1, 0);
  __cpuidex(leaf7, 7, 0);
  const bool xsave = leaf1[2] >> 27 & 1, fma = leaf1[2] >> 12 & 1, avx2 = leaf7[1] >> 5 & 1;
  if (!(xsave && fma && avx2 && (_xgetbv(0) & 6) == 6)) return false;
  const unsigned wanted = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;  // F, DQ, BW, VL
  return !avx512 || ((_xgetbv(0) & 0xe6) == 0xe6 && (static_cast<unsigned>(leaf7[1]) & wanted) == wanted);
}
#else
bool cpu_has(bool avx512) {
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return false;
  return !avx512 || (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                     __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"));
}
#endif
#endif

#if defined(FASTDIFF_HAS_X86)
#define FASTDIFF_REPLACE(type, name) kernels.name = FASTDIFF_FROM::name;
// With the products in lower precision that this processor has.
const Kernels& avx512_table() {
  static const Kernels table = [] {
    Kernels kernels = avx512::table;
#if defined(FASTDIFF_HAS_LOW_PRECISION)
    kernels.bfloat16_products = __builtin_cpu_supports("avx512bf16");
    kernels.int8_products = __builtin_cpu_supports("avx512vnni");
#define FASTDIFF_FROM avx512_bfloat16
    if (kernels.bfloat16_products) {
      FASTDIFF_BFLOAT16_KERNELS(FASTDIFF_REPLACE)
    }
#undef FASTDIFF_FROM
#define FASTDIFF_FROM avx512_vnni
    if (kernels.int8_products) {
      FASTDIFF_INT8_KERNELS(FASTDIFF_REPLACE)
    }
#undef FASTDIFF_FROM
#endif
    return kernels;
  }();
  return table;
}
#endif

#if defined(FASTDIFF_HAS_AMX)
#if defined(FASTDIFF_EMULATE_AMX)
constexpr bool kEmulated = true;
bool cpu_has_amx() { return cpu_has(true); }
#else
constexpr bool kEmulated = false;
// Whether there are tiles and their bfloat16 products, and Linux, asked for once a process, lets this one use them.
bool cpu_has_amx() {
  unsigned a, b, c, d;
  if (!cpu_has(true) || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  constexpr unsigned kBfloat16 = 1u << 22, kTile = 1u << 24;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return (d & kBfloat16) && (d & kTile) && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

// What has no products is as in AVX-512.
const Kernels& amx_table() {
  static const Kernels table = [] {
    Kernels kernels = avx512_table();
    kernels.isa = "amx";
#define FASTDIFF_FROM amx
    FASTDIFF_AMX_KERNELS(FASTDIFF_REPLACE)
#undef FASTDIFF_FROM
    return kernels;
  }();
  return table;
}
#endif

std::vector<const Kernels*> find_supported() {
  std::vector<const Kernels*> tables;
#if defined(FASTDIFF_HAS_X86)
  if (cpu_has(true)) tables.push_back(&avx512_table());
  if (cpu_has(false)) tables.push_back(&avx2::table);
#endif
#if defined(FASTDIFF_HAS_NEON)
  tables.push_back(&neon::table);
#endif
  tables.push_back(&baseline::table);
#if defined(FASTDIFF_HAS_AMX)
  if (cpu_has_amx()) tables.insert(kEmulated ? tables.end() : tables.begin(), &amx_table());
#endif
  return tables;
}

const std::vector<const Kernels*>& supported() {
  static const std::vector<const Kernels*> tables = find_supported();
  return tables;
}

const Kernels* find(const std::string& name, const std::string& asked_by) {
  std::string names;
  for (const Kernels* table : supported()) {
    if (table->isa == name) return table;
    names += (names.empty() ? "" : ", ") + std::string(table->isa);
  }
  throw std::invalid_argument(asked_by + name + " is not available here; available: " + names);
}

const Kernels* first_choice() {
  const char *wanted = std::getenv("FASTDIFF_ISA"), *exact = std::getenv("FASTDIFF_EXACT");
  if (exact && *exact && std::string(exact) != "0" && std::string(exact) != "1")
    throw std::invalid_argument(std::string("the environment variable FASTDIFF_EXACT must be 0 or 1, got '") + exact +
                                "'");
  const auto allowed = [&](const Kernels* table) {
    return !(exact && std::string(exact) == "1" && table->linear_multiply);
  };
  if (!wanted || !*wanted) return *std::find_if(supported().begin(), supported().end(), allowed);
  const Kernels* table = find(wanted, "FASTDIFF_ISA=");
  if (!allowed(table))
    throw std::invalid_argument(std::string("FASTDIFF_ISA=") + wanted + " multiplies in bfloat16 terms, which " +
                                "FASTDIFF_EXACT=1 rules out");
  return table;
}

std::atomic<const Kernels*> chosen{nullptr};

}  // namespace

const Kernels& kernels() {
  const Kernels* table = chosen.load(std::memory_order_acquire);
  if (!table) chosen.store(table = first_choice(), std::memory_order_release);
  return *table;
}

void select_isa(const char* name) { chosen.store(find(name, "instruction set "), std::memory_order_release); }

const char* const* supported_isas() {
  static const std::vector<const char*> names = [] {
    std::vector<const char*> list;
    for (const Kernels* table : supported()) list.push_back(table->isa);
    list.push_back(nullptr);
    return list;
  }();
  return names.data();
}

}  // namespace fastdiff
