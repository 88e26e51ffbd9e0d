// Stacks and the switch between them, with the calls that inform the sanitizers.
#pragma once
#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>

// Present when the program is linked with the sanitizer, absent otherwise: no build variants here.
extern "C" {
void* __tsan_get_current_fiber(void) __attribute__((weak));
void* __tsan_create_fiber(unsigned flags) __attribute__((weak));
void __tsan_switch_to_fiber(void* fiber, unsigned flags) __attribute__((weak));
void __tsan_acquire(void* address) __attribute__((weak));
void __tsan_release(void* address) __attribute__((weak));
void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t size) __attribute__((weak));
void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom, size_t* size) __attribute__((weak));
void __asan_poison_memory_region(const volatile void* address, size_t size) __attribute__((weak));
void __asan_unpoison_memory_region(const volatile void* address, size_t size) __attribute__((weak));
}

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace simt::runtime {

constexpr size_t kStack = 256 << 10;

struct Fiber {
  void* stack = nullptr;  // never freed: a sanitizer may remember it
  void* tsan = nullptr;
#if defined(__x86_64__)
  void* sp = nullptr;
#else
  ucontext_t context;
#endif
};

#if defined(__x86_64__)
// Saves the callee-saved registers of the ABI, and continues where `to` was saved. Weak, as an inline function is.
extern "C" void simt_switch(void** from, void* to);
asm(R"(
.text
.weak simt_switch
.type simt_switch, @function
simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size simt_switch, .-simt_switch
)");
#endif

inline void create(Fiber& fiber, void (*entry)()) {
  const size_t guard = 4096;
  char* memory = static_cast<char*>(
      mmap(nullptr, kStack + guard, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  if (memory == MAP_FAILED || mprotect(memory, guard, PROT_NONE) != 0) std::abort();
  fiber.stack = memory + guard;
  if (__tsan_create_fiber) fiber.tsan = __tsan_create_fiber(0);
#if defined(__x86_64__)
  void** top = reinterpret_cast<void**>(memory + guard + kStack) - 1;
  *--top = reinterpret_cast<void*>(entry);  // where the first switch returns to, the stack then as after a call
  fiber.sp = top - 6;
#else
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack;
  fiber.context.uc_stack.ss_size = kStack;
  makecontext(&fiber.context, entry, 0);
#endif
}

inline void switch_fiber(Fiber& from, Fiber& to, const void* to_bottom, size_t to_size) {
  void* fake = nullptr;
  if (__sanitizer_start_switch_fiber) __sanitizer_start_switch_fiber(&fake, to_bottom, to_size);
  if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(to.tsan, 1);  // 1: no synchronisation implied
#if defined(__x86_64__)
  simt_switch(&from.sp, to.sp);
#else
  swapcontext(&from.context, &to.context);
#endif
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
}

}  // namespace simt::runtime
