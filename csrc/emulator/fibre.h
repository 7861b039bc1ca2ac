// Fibres of the emulator: stacks that one thread switches between, and the annotations that the sanitizers need for them.
#pragma once
#include <cstddef>
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
extern "C" {
void AnnotateIgnoreReadsBegin(const char*, int);
void AnnotateIgnoreReadsEnd(const char*, int);
void AnnotateIgnoreWritesBegin(const char*, int);
void AnnotateIgnoreWritesEnd(const char*, int);
}
#endif
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace cuda_on_cpu {

constexpr size_t kStack = 256 << 10, kGuard = 4096;

#if defined(__x86_64__)
struct Context {
  void* stack_pointer = nullptr;
};
// Saves the registers that the calling convention requires; ucontext would also make two system calls per switch.
__attribute__((naked, noinline)) inline void swap_stack(void** /*save*/, void* /*load*/) {
  asm volatile(
      "pushq %rbp\n\tpushq %rbx\n\tpushq %r12\n\tpushq %r13\n\tpushq %r14\n\tpushq %r15\n\t"
      "movq %rsp, (%rdi)\n\tmovq %rsi, %rsp\n\t"
      "popq %r15\n\tpopq %r14\n\tpopq %r13\n\tpopq %r12\n\tpopq %rbx\n\tpopq %rbp\n\tret");
}
inline void swap(Context& from, Context& to) { swap_stack(&from.stack_pointer, to.stack_pointer); }
inline void prepare(Context& context, char* stack, void (*entry)()) {
  void** top = reinterpret_cast<void**>(stack + kStack);
  *--top = nullptr;  // keeps the stack aligned as after a call
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  context.stack_pointer = top;
}
#else
using Context = ucontext_t;
inline void swap(Context& from, Context& to) { swapcontext(&from, &to); }
inline void prepare(Context& context, char* stack, void (*entry)()) {
  getcontext(&context);
  context.uc_stack.ss_sp = stack, context.uc_stack.ss_size = kStack, context.uc_link = nullptr;
  makecontext(&context, entry, 0);
}
#endif

// ThreadSanitizer sees each fibre as a thread, ordered with the others only by barriers and warp exchanges. The scheduler's own
// memory is hidden from it.
#if defined(__SANITIZE_THREAD__)
struct Unwatched {
  Unwatched() { AnnotateIgnoreReadsBegin(__FILE__, __LINE__), AnnotateIgnoreWritesBegin(__FILE__, __LINE__); }
  ~Unwatched() { AnnotateIgnoreWritesEnd(__FILE__, __LINE__), AnnotateIgnoreReadsEnd(__FILE__, __LINE__); }
};
inline void before(void* event) { __tsan_release(event); }
inline void after(void* event) { __tsan_acquire(event); }
#else
struct Unwatched {
  ~Unwatched() {}
};
inline void before(void*) {}
inline void after(void*) {}
#endif

}  // namespace cuda_on_cpu
