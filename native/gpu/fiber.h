/* fiber.h - a thread of control with a stack of its own, which goes on when it is switched to.
 *
 * Switching is a few instructions: swapcontext would call the system twice, for the signal mask,
 * and take fifty times as long. AddressSanitizer is told of every switch.
 */
#ifndef QWEN3_GPU_FIBER_H
#define QWEN3_GPU_FIBER_H

#include <cstddef>
#include <cstdint>
#include <memory>

#if defined(__SANITIZE_ADDRESS__)
#define FIBERS_FOR_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define FIBERS_FOR_ASAN 1
#endif
#endif
#if FIBERS_FOR_ASAN
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulated {

/* Saves what a call preserves on the stack, the stack's end in *from, and goes on where `to` was
 * saved. */
void switch_stacks(void **from, void *to) asm("qwen3_switch_stacks");

/* What switch_stacks restores, in words, and which of them is the address it returns to. */
#if defined(__x86_64__)
enum { SAVED = 8, RETURN = 6 }; /* the last word is the caller's, for the alignment */
asm(R"(
.text
.p2align 4
qwen3_switch_stacks:
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
)");
#elif defined(__aarch64__)
enum { SAVED = 20, RETURN = 11 };
asm(R"(
.text
.p2align 4
qwen3_switch_stacks:
    sub sp, sp, #160
    stp x19, x20, [sp]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
)");
#else
#error "fibers need switch_stacks for this processor"
#endif

class Fiber {
  public:
    Fiber() = default; /* of the code that runs, whose stack is there */
    /* entry never returns. */
    explicit Fiber(void (*entry)()) : own_(new char[STACK]), stack_(own_.get()), size_(STACK) {
        uintptr_t end = ((uintptr_t)own_.get() + STACK) & ~(uintptr_t)15;
        void **words = (void **)end - SAVED;
        for (int i = 0; i < SAVED; i++) words[i] = nullptr;
        words[RETURN] = (void *)entry;
        at_ = words;
    }

    /* From the fiber that runs to another. */
    void switch_to(Fiber *to) {
#if FIBERS_FOR_ASAN
        to->from_ = this;
        __sanitizer_start_switch_fiber(&fake_stack_, to->stack_, to->size_);
#endif
        switch_stacks(&at_, to->at_);
        arrived();
    }

    /* The first thing an entry does. */
    void arrived() {
#if FIBERS_FOR_ASAN
        __sanitizer_finish_switch_fiber(fake_stack_, &from_->stack_, &from_->size_);
#endif
    }

  private:
    enum { STACK = 1 << 16 };
    std::unique_ptr<char[]> own_;
    void *at_ = nullptr;          /* where it was left */
    /* For AddressSanitizer: */
    [[maybe_unused]] const void *stack_ = nullptr; /* without its own: known when it was left */
    [[maybe_unused]] size_t size_ = 0;
    [[maybe_unused]] void *fake_stack_ = nullptr;
    [[maybe_unused]] Fiber *from_ = nullptr;
};

} // namespace emulated

#endif
