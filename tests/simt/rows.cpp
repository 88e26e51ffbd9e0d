// Prints the launches of one call as JSON and, if it runs on the twin, also the counts of its kernels.
//
//   simt_rows launches|counts float|double krr B S Q D C FORWARD BACKWARD [fused] [all] [one_pass]
//   simt_rows launches|counts float|double rbf|matern_5|polynomial|laplace_1 B S Q D C [fused] [all] [far] [products]
//   simt_rows launches|counts double arc_cosine_0|arc_cosine_1|nngp|ntk B S Q D C [all]
//   simt_rows launches|counts float|double cholesky B N C [cluster]
//   simt_rows launches|counts float|double strided B S Q D STRIDE
//   simt_rows launches|counts float product B M N K A B [TILE [halves]]
//
// FORWARD, BACKWARD: dense, low_rank, mixed or primal. all: all gradients, not only those to X_s and Y_s.
// one_pass: with as many blocks of queries as ssdd_ext/plan asks for. far: points in clusters far apart. products: distances by products. strided: K of points with a stride of STRIDE between features.
// A, B: k-float, k-bf16, k-f16 if k is the direction of unit stride; across-float, ... if not. TILE: 64 or 128.
//
// `launches` runs no kernel and touches no memory: the sizes may be those of a real problem. A kernel is named by its
// address in the program (hexadecimal), which its symbols translate.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <typeinfo>
#include <utility>
#include <vector>

#include "cholesky.h"
#include "cuda/angles.cuh"
#include "cuda/factor.cuh"
#include "cuda/kernel_functions.cuh"
#include "cuda/one_pass.cuh"
#include "cuda/vector.cuh"
#include "gram.h"
#include "krr.h"
#include "runtime.h"

extern "C" const char __executable_start;  // the linker's

namespace {

using namespace ssdd;

// Arrays aligned as a device's allocations are. Without `real` they are addresses only.
class Memory {
 public:
  explicit Memory(bool real) : real(real) {}
  template <class T>
  T* take(int64_t count) {
    const size_t bytes = (size_t(count) * sizeof(T) + 511) / 256 * 256;
    if (!real) {
      char* const p = reinterpret_cast<char*>(fake);
      fake += bytes;
      return reinterpret_cast<T*>(p);
    }
    kept.emplace_back(std::aligned_alloc(256, bytes), &std::free);
    std::memset(kept.back().get(), 0xff, bytes);
    return static_cast<T*>(kept.back().get());
  }
  template <class T>
  T* random(int64_t count) {
    T* const p = take<T>(count);
    for (int64_t i = 0; real && i < count; ++i) p[i] = T(double(generator() >> 11) * 0x1p-52 - 1);
    return p;
  }

  const bool real;

 private:
  uintptr_t fake = uintptr_t(1) << 40;
  std::vector<std::unique_ptr<void, void (*)(void*)>> kept;
  std::mt19937_64 generator{7};
};

template <class T>
Batch<const T> dense(const T* p, int64_t rows, int64_t columns) {
  return {p, rows * columns, columns, 1};
}

template <class T>
void krr(Memory& memory, KrrShape shape, Plan backward, bool all, bool far) {
  const bool linear = shape.kernel == KernelKind::linear;
  const int64_t b = shape.batch, s = shape.s, q = shape.q, d = shape.d, c = shape.c, n = shape.n;
  KrrForwardArgs<T> f{};
  f.shape = shape;
  const auto points = [&](int64_t rows) {
    T* const p = memory.random<T>(b * rows * d);
    for (int64_t i = 0; memory.real && far && i < b * rows * d; ++i) p[i] += T(i / d % 3 * 1000);
    return dense<T>(p, rows, d);
  };
  f.x_s = points(s);
  f.y_s = dense<T>(memory.random<T>(b * s * c), s, c);
  f.x_q = points(q);
  f.y_q = dense<T>(memory.random<T>(b * q * c), q, c);
  f.out = memory.take<T>(b * q * c);
  f.loss = memory.take<T>(b);
  f.factor = memory.take<T>(b * n * n);
  f.coef = memory.take<T>(b * n * c);
  f.kept = shape.plan == Plan::dense ? memory.take<T>(b * kept_rows(shape.kernel, s, q) * s) : nullptr;
  f.parts = shape.parts ? memory.take<T>(b * shape.parts * one_pass_part(s, d, c)) : nullptr;
  f.aux = memory.take<T>(3 * b);
  f.jitter = memory.take<T>(b);
  f.status = memory.take<int32_t>(b);
  f.hyper.count = parameter_count(shape.kernel) + 1;
  f.hyper.values[0] = of_one_norm(shape.kernel)   ? double(d)
                      : of_distance(shape.kernel) ? std::sqrt(double(d))
                      : linear                    ? 1
                                                  : 1 / double(d);
  f.hyper.values[1] = linear ? 1 : 0.1;
  f.hyper.values[f.hyper.count - 1] = 0.1;
  f.on_failure = OnFailure::nan;
  f.work = memory.take<T>(cuda::krr_workspace(shape, false));
  cuda::krr_forward(f, nullptr);
  KrrBackwardArgs<T> g{};
  g.shape = shape;
  g.shape.plan = backward;
  g.x_s = f.x_s;
  g.y_s = f.y_s;
  g.x_q = f.x_q;
  g.e = dense<T>(f.out, q, c);
  g.g = {memory.random<T>(b), 1, 1, 1};
  g.factor = f.factor;
  g.coef = f.coef;
  g.kept = f.kept;
  g.parts = f.parts;
  g.aux = f.aux;
  g.hyper = f.hyper;
  g.grad_x_s = memory.take<T>(b * s * d);
  g.grad_y_s = memory.take<T>(b * s * c);
  if (all) {
    g.grad_x_q = memory.take<T>(b * q * d);
    g.grad_hyper = memory.take<T>(b * f.hyper.count);
  }
  g.work = memory.take<T>(cuda::krr_workspace(g.shape, true));
  cuda::krr_backward(g, nullptr);
}

template <class T>
void cholesky(Memory& memory, int64_t batch, int64_t n, int64_t c, bool cluster, bool real) {
  SolveArgs<T> a{};
  a.batch = batch;
  a.s = n;
  a.c = c;
  T* const matrix = memory.random<T>(batch * n * n);
  for (int64_t i = 0; real && i < batch * n; ++i) matrix[i * n + i % n] = T(n);
  a.a = dense<T>(matrix, n, n);
  a.factor = memory.take<T>(batch * n * n);
  if (c > 0) {
    a.y = dense<T>(memory.random<T>(batch * n * c), n, c);
    a.x = memory.take<T>(batch * n * c);
  }
  a.jitter = memory.take<T>(batch);
  a.aux = memory.take<T>(3 * batch);
  a.status = memory.take<int32_t>(batch);
  a.hyper.count = 1;
  a.hyper.values[0] = 1e-3;
  a.ridge = RidgeKind::trace;
  a.work = memory.take<T>(cuda::cholesky_workspace(batch, n, c));
  a.cluster = cluster;
  cuda::solve(a, nullptr);
}

template <class T>
void strided(Memory& memory, int64_t b, int64_t s, int64_t q, int64_t d, int64_t stride) {
  GramArgs<T> a{};
  a.batch = b;
  a.s = s;
  a.q = q;
  a.d = d;
  a.kernel = KernelKind::rbf;
  a.x = {memory.random<T>(b * s * d * stride), s * d * stride, d * stride, stride};
  a.z = {memory.random<T>(b * q * d * stride), q * d * stride, d * stride, stride};
  a.k = memory.take<T>(b * s * q);
  a.hyper.count = 1;
  a.hyper.values[0] = 1;
  a.work = memory.take<T>(cuda::gram_workspace(b, s, q, d));
  cuda::gram(a, nullptr);
}

// Runs c = a b with operands of the types and layouts a_how and b_how.
void product(Memory& memory, int64_t batch, int64_t m, int64_t n, int64_t k, const std::string& a_how,
             const std::string& b_how, int tile, bool halves) {
  const auto operand = [&](int64_t across, const std::string& how) {  // [across, k]
    const bool along_k = how.rfind("k-", 0) == 0, narrow = how.find("16") != std::string::npos;
    const int64_t count = batch * across * k;
    float* const values = memory.random<float>(count);
    cuda::Source<float> source(values, across * k, along_k ? k : 1, along_k ? 1 : across);
    if (narrow) {
      uint16_t* const halves = memory.take<uint16_t>(count);
      for (int64_t i = 0; memory.real && i < count; ++i)
        std::memcpy(halves + i, reinterpret_cast<char*>(values + i) + 2, 2);
      source.p = reinterpret_cast<const float*>(halves);
      source.element = how.find("-bf16") != std::string::npos ? Element::bf16 : Element::f16;
    }
    return source;
  };
  cuda::Product<float> p{};
  p.batch = batch;
  p.m = m;
  p.n = n;
  p.k = k;
  p.a = operand(m, a_how);
  p.b = operand(n, b_how).t();
  p.c = memory.take<float>(batch * m * n);
  p.c_bs = m * n;
  p.ld = n;
  p.split_elements = cuda::split_room(batch, m, n, k);
  p.split = memory.take<float>(p.split_elements);
  p.counters = memory.take<int>(cuda::kCounters);
  p.tile = tile;
  if (halves) p.scales = memory.take<float>(batch * (m + n));
  for (int64_t i = 0; memory.real && i < cuda::kCounters; ++i) p.counters[i] = 0;
  cuda::product(p, nullptr);
}

// --- JSON -----------------------------------------------------------------------------------------------------

template <class T>
bool is(const simt::Argument& a) {
  return std::strcmp(a.type, typeid(T).name()) == 0;
}
template <class T>
T as(const simt::Argument& a) {
  alignas(T) unsigned char bytes[sizeof(T)];
  std::memcpy(bytes, a.bytes.data(), sizeof(T));
  return *reinterpret_cast<T*>(bytes);
}

// If k is the direction of unit stride of A and of B: products of floats on the tensor cores depend on it.
std::pair<bool, bool> k_major(const cuda::Product<float>& p) {
  return {cuda::layout_of(p.a, 16).k_major, cuda::layout_of(p.b.t(), 16).k_major};
}
std::pair<bool, bool> k_major(const cuda::Product<double>&) { return {true, true}; }

template <class T>
void print_product(const cuda::Product<T>& p) {
  const auto [a_major, b_major] = k_major(p);
  std::printf(
      "{\"product\": %zu, \"batch\": %ld, \"m\": %ld, \"n\": %ld, \"k\": %ld, \"triangle\": %d, \"inner\": %d, "
      "\"accumulate\": %s, \"accumulate_from\": %ld, \"add\": %s, \"row\": %s, \"squares\": %ld, "
      "\"scales\": %s, \"dots\": %s, \"element\": [%zu, %zu], \"k_major\": [%s, %s]}",
      sizeof(T), p.batch, p.m, p.n, p.k, int(p.triangle), int(p.inner), p.accumulate ? "true" : "false",
      p.accumulate_from, p.add ? "true" : "false", p.row ? "true" : "false", p.squares.out ? p.squares.all : 0,
      p.scales ? "true" : "false", p.dots.p ? "true" : "false", p.a.element == Element::own ? sizeof(T) : 2,
      p.b.element == Element::own ? sizeof(T) : 2, a_major ? "true" : "false", b_major ? "true" : "false");
}
void print_tiling(const cuda::Tiling& t) {
  std::printf("{\"size\": %d, \"splits\": %d, \"k_share\": %ld}", t.size, t.splits, t.k_share);
}

void print_sizes(const cuda::OnePass& of) {
  std::printf(
      "{\"s\": %d, \"q\": %d, \"d\": %d, \"c\": %d, \"width\": %d, \"targets\": %d, \"parts\": %d, "
      "\"moment\": %ld, \"part\": %ld",
      of.s, of.q, of.d, of.c, of.width, of.targets, of.parts, of.moment, of.part);
}

template <class T>
bool describe(const simt::Argument& a) {
  if (is<cuda::Product<T>>(a)) {
    print_product(as<cuda::Product<T>>(a));
  } else if (is<cuda::Pair>(a)) {  // its products one after the other, like the arguments of other products
    const auto pair = as<cuda::Pair>(a);
    for (int i = 0; i < pair.count; ++i) {
      if (i > 0) std::printf(", ");
      print_product(pair.p[i]);
      std::printf(", ");
      print_tiling(pair.tiling[i]);
    }
  } else if (is<cuda::Factor<T>>(a) || (std::strstr(a.type, "Attempt") && a.bytes.size() > sizeof(cuda::Factor<T>))) {
    const auto f = as<cuda::Factor<T>>(a);  // Attempt begins with one
    std::printf("{\"factor\": true, \"batch\": %ld, \"n\": %ld, \"c\": %ld, \"zero_upper\": %s}", f.batch, f.n,
                f.x ? f.c : 0, f.zero_upper ? "true" : "false");
  } else if (is<cuda::Points<T>>(a)) {
    const auto p = as<cuda::Points<T>>(a);
    std::printf("{\"points\": %ld, \"distance\": %s}", p.d, p.kernel == KernelKind::rbf ? "true" : "false");
  } else if (std::strstr(a.type, "9HyperArgsI")) {
    // HyperArgs begins with c, s, strips and three sources with their rows.
    struct Rows {
      cuda::Source<T> x;
      int64_t count;
    };
    struct {
      int64_t c, s, strips;
      Rows rows[3];
    } h;
    std::memcpy(&h, a.bytes.data(), sizeof(h));
    std::printf("{\"c\": %ld, \"strips\": %ld, \"rows\": %ld}", h.c, h.strips,
                h.rows[0].count + h.rows[1].count + h.rows[2].count);
  } else if (std::strstr(a.type, "8Operands")) {  // of product_halves.cu
    struct {
      cuda::Source<float> x;
      int64_t rows, k, blocks;
      float* scales;
      bool k_major;
    } of[2];
    std::memcpy(of, a.bytes.data(), sizeof(of));
    std::printf("{\"operands\": [[%ld, %ld, %d], [%ld, %ld, %d]]}", of[0].rows, of[0].k, of[0].k_major, of[1].rows,
                of[1].k, of[1].k_major);
  } else if (std::strstr(a.type, "13PointsToShiftI")) {  // of distances.cu: begins with three sizes
    int64_t sizes[3];
    std::memcpy(sizes, a.bytes.data(), sizeof(sizes));
    std::printf("{\"all\": %ld, \"features\": %ld}", sizes[1], sizes[2]);
  } else if (std::strstr(a.type, "9SlopeArgsI")) {  // begins with rows, columns and square
    struct {
      int64_t rows, columns;
      bool square;
    } s;
    std::memcpy(&s, a.bytes.data(), sizeof(s));
    std::printf("{\"rows\": %ld, \"columns\": %ld, \"square\": %s}", s.rows, s.columns, s.square ? "true" : "false");
  } else if (std::strstr(a.type, "5SolveI")) {  // of factor_large.cu: begins with five sizes
    int64_t sizes[5];
    std::memcpy(sizes, a.bytes.data(), sizeof(sizes));
    std::printf("{\"solve\": true, \"batch\": %ld, \"n\": %ld, \"c\": %ld}", sizes[0], sizes[1], sizes[2]);
  } else if (is<cuda::QueryArgs>(a)) {
    const auto q = as<cuda::QueryArgs>(a);
    print_sizes(q.of);
    std::printf(", \"rows\": %d, \"chunk\": %d, \"left\": %s}", q.rows, q.chunk, q.left ? "true" : "false");
  } else if (is<cuda::FinishArgs>(a)) {
    const auto f = as<cuda::FinishArgs>(a);
    print_sizes(f.of);
    std::printf(", \"columns\": %d, \"strips\": %d, \"x_s\": %s, \"y_s\": %s, \"x_q\": %s}", f.columns, f.strips,
                f.grad_x_s ? "true" : "false", f.grad_y_s ? "true" : "false", f.grad_x_q ? "true" : "false");
  } else if (is<cuda::Copy<T>>(a)) {
    const auto c = as<cuda::Copy<T>>(a);
    std::printf("{\"batch\": %ld, \"rows\": %ld, \"columns\": %ld}", c.batch, c.rows, c.columns);
  } else if (is<cuda::AfterSolve<T>>(a)) {
    const auto s = as<cuda::AfterSolve<T>>(a);
    std::printf("{\"batch\": %ld, \"rows\": %ld, \"columns\": %ld, \"pack\": %s, \"follows\": %s}", s.batch, s.rows,
                s.columns, s.pack ? "true" : "false", s.scalars ? "true" : "false");
  } else if (is<cuda::ScalarArgs<T>>(a)) {
    const auto s = as<cuda::ScalarArgs<T>>(a);
    std::printf("{\"columns\": %ld, \"rows\": %ld}", s.column_sums ? s.batch * s.e_columns : 0, s.e_rows);
  } else if (is<cuda::Angles>(a)) {
    const auto m = as<cuda::Angles>(a);
    std::printf("{\"batch\": %ld, \"rows\": %ld, \"columns\": %ld}", m.batch, m.rows, m.columns);
  } else if (is<cuda::AngleSlopes>(a)) {
    const auto s = as<cuda::AngleSlopes>(a);
    std::printf("{\"rows\": %ld, \"columns\": %ld, \"square\": %s}", s.rows, s.of.columns,
                s.of.square ? "true" : "false");
  } else if (is<cuda::KernelMap<T>>(a)) {
    const auto m = as<cuda::KernelMap<T>>(a);
    std::printf("{\"batch\": %ld, \"count\": %ld}", m.batch, m.count);
  } else if (is<cuda::KernelSlopes<T>>(a)) {
    const auto s = as<cuda::KernelSlopes<T>>(a);
    std::printf("{\"rows\": %ld, \"columns\": %ld, \"square\": %s, \"distance\": %s}", s.rows, s.columns,
                s.square ? "true" : "false", of_distance(s.kind) ? "true" : "false");
  } else if (is<cuda::ColumnSums<T>>(a)) {
    const auto c = as<cuda::ColumnSums<T>>(a);
    std::printf("{\"batch\": %ld, \"rows\": %ld, \"columns\": %ld}", c.batch, c.rows, c.columns);
  } else {
    return false;
  }
  return true;
}

template <class T>
void print_argument(const simt::Argument& a) {
  if (describe<T>(a)) return;
  if (is<cuda::Tiling>(a))
    print_tiling(as<cuda::Tiling>(a));
  else if (is<int64_t>(a))
    std::printf("%ld", as<int64_t>(a));
  else if (is<int>(a))
    std::printf("%d", as<int>(a));
  else if (is<bool>(a))
    std::printf("%s", as<bool>(a) ? "true" : "false");
  else
    std::printf("null");
}

template <class T>
void print() {
  const auto place = [](const void* kernel) { return static_cast<const char*>(kernel) - &__executable_start; };
  std::printf("{\"launches\": [");
  const char* comma = "\n";
  for (const simt::Launch& l : simt::recorded()) {
    std::printf(
        "%s{\"kernel\": \"%tx\", \"blocks\": %u, \"threads\": %d, \"shared\": %d, \"flops\": %ld, \"loaded\": %ld, "
        "\"stored\": %ld, \"arguments\": [",
        comma, place(l.kernel), l.grid.x, l.threads, l.shared_bytes, l.flops, l.loaded, l.stored);
    for (size_t i = 0; i < l.arguments.size(); ++i) {
      if (i > 0) std::printf(", ");
      print_argument<T>(l.arguments[i]);
    }
    std::printf("]}");
    comma = ",\n";
  }
  std::printf("],\n\"accesses\": [");
  const simt::Count* counts;
  const int lines = simt::counted(&counts);
  const char* const spaces[] = {"load", "store", "shared"};
  for (int i = 0; i < lines; ++i) {
    const simt::Count& c = counts[i];
    const char* const slash = std::strrchr(c.site.file, '/');
    std::printf(
        "%s{\"kernel\": \"%tx\", \"line\": \"%s:%d\", \"space\": \"%s\", \"requests\": %ld, \"sectors\": %ld, "
        "\"least_sectors\": %ld, \"ways\": %d}",
        i > 0 ? ",\n" : "\n", place(c.kernel), slash ? slash + 1 : c.site.file, c.site.line, spaces[int(c.space)],
        c.requests, c.sectors, c.least_sectors, c.worst_ways);
  }
  std::printf("]}\n");
}

Plan plan(const std::string& name) {
  for (const auto& [known, which] : std::map<std::string, Plan>{
           {"dense", Plan::dense}, {"low_rank", Plan::low_rank}, {"mixed", Plan::mixed}, {"primal", Plan::primal}})
    if (known == name) return which;
  std::fprintf(stderr, "no plan named '%s'\n", name.c_str());
  std::exit(2);
}

KernelKind kernel(const std::string& name) {
  for (const auto& [known, which] : std::map<std::string, KernelKind>{{"krr", KernelKind::linear},
                                                                      {"rbf", KernelKind::rbf},
                                                                      {"matern_5", KernelKind::matern_5},
                                                                      {"polynomial", KernelKind::polynomial},
                                                                      {"laplace_1", KernelKind::laplace_1},
                                                                      {"arc_cosine_0", KernelKind::arc_cosine_0},
                                                                      {"arc_cosine_1", KernelKind::arc_cosine_1},
                                                                      {"nngp", KernelKind::nngp},
                                                                      {"ntk", KernelKind::ntk}})
    if (known == name) return which;
  std::fprintf(stderr, "no kernel named '%s'\n", name.c_str());
  std::exit(2);
}

template <class T>
int run(const std::vector<std::string>& words) {
  const bool real = words[0] == "counts";
  const auto number = [&](size_t i) { return int64_t(std::stoll(words.at(i))); };
  Memory memory(real);
  simt::count_accesses(real);
  simt::record_launches(real ? simt::Recording::with_run : simt::Recording::instead_of_run);
  if (words.at(2) == "cholesky") {
    cholesky<T>(memory, number(3), number(4), number(5), words.size() > 6, real);
  } else if (words[2] == "strided") {
    strided<T>(memory, number(3), number(4), number(5), number(6), number(7));
  } else if (words[2] == "product") {
    product(memory, number(3), number(4), number(5), number(6), words.at(7), words.at(8),
            words.size() > 9 ? static_cast<int>(number(9)) : 0, words.size() > 10);
  } else {
    const bool linear = words[2] == "krr";
    const Plan forward = linear ? plan(words.at(8)) : Plan::dense, backward = linear ? plan(words.at(9)) : Plan::dense;
    const auto has_flag = [&](const char* what) {
      return std::find(words.begin() + 8, words.end(), what) != words.end();
    };
    const int64_t s = number(4), q = number(5), d = number(6);
    KrrShape shape{number(3),
                   s,
                   q,
                   d,
                   number(7),
                   forward == Plan::primal ? d + 1 : s,
                   kernel(words[2]),
                   RidgeKind::trace,
                   true,
                   forward == Plan::primal,
                   forward,
                   q,
                   1,
                   has_flag("fused"),
                   false,
                   3};
    shape.products = has_flag("products");
    if (has_flag("one_pass"))
      shape.parts = std::min((q + 7) / 8, std::max<int64_t>(1, cuda::kChip / std::max<int64_t>(1, shape.batch)));
    krr<T>(memory, shape, backward, has_flag("all"), has_flag("far"));
  }
  print<T>();
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> words(argv + 1, argv + argc);
  if (words.size() < 6) return std::fputs("simt_rows: see the head of rows.cpp\n", stderr), 2;
  return words[1] == "double" ? run<double>(words) : run<float>(words);
}
