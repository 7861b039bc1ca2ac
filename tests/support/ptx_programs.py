"""Small PTX programs for the tests of the PTX machine."""

from ptx_machine import run

HEAD = ".version 9.0\n.target sm_90\n.address_size 64\n.visible .entry k({params})\n{{\n"


REGISTERS = (
    ".reg .pred %p<20>;\n.reg .b16 %h<20>;\n.reg .b32 %r<40>;\n.reg .f32 %f<20>;\n.reg .f64 %d<20>;\n.reg .b64 %l<40>;\n"
    ".shared .align 16 .b8 shared[1024];\n"
)


def program(body, buffers=1, numbers=True):
    """A kernel k(buffer 0, …, int launch, int number). %l0, …: addresses; %r0, %r1: the ints; %r2: the thread; %r3: its block"""
    params = [f".param .u64 b{i}" for i in range(buffers)] + [f".param .u32 {name}" for name in ("launch", "number") if numbers]
    begin = "".join(f"ld.param.u64 %l{i}, [b{i}];\n" for i in range(buffers))
    begin += "ld.param.u32 %r0, [launch];\nld.param.u32 %r1, [number];\n" if numbers else ""
    begin += "mov.u32 %r2, %tid.x;\nmov.u32 %r3, %ctaid.x;\n"
    return HEAD.format(params=", ".join(params)) + REGISTERS + begin + body + "\nret;\n}\n"


def found(body, *buffers, **how):
    return run(program(body, len(buffers)), *buffers, **how)


STORE = "mul.wide.u32 %l20, %r2, 4;\nadd.s64 %l20, %l20, %l0;\nst.global.u32 [%l20], %r19;"


REVERSE = (  # through shared memory: out[i] = in[n - 1 - i]
    "mov.u32 %r10, shared;\nmad.lo.s32 %r11, %r2, 4, %r10;\nst.shared.u32 [%r11], %r2;\n{barrier}\nmov.u32 %r12, %ntid.x;\n"
    "sub.s32 %r12, %r12, %r2;\nmad.lo.s32 %r13, %r12, 4, %r10;\nld.shared.u32 %r19, [%r13+-4];\n" + STORE
)


CLUSTER = (  # each block writes its rank to the shared memory of the next, which reads it: out[block] = rank of the previous one
    "mov.u32 %r10, shared;\nmov.u32 %r4, %cluster_ctarank;\nmov.u32 %r5, %cluster_nctarank;\nadd.u32 %r6, %r4, 1;\nrem.u32 %r6, %r6, %r5;\n"
    "{start}\nsetp.eq.s32 %p1, %r2, 0;\nmapa.shared::cluster.u32 %r11, %r10, %r6;\n@%p1 st.shared::cluster.u32 [%r11], %r4;\n"
    "{middle}\n@%p1 ld.shared.u32 %r19, [%r10];\nmul.wide.u32 %l20, %r3, 4;\nadd.s64 %l20, %l20, %l0;\n@%p1 st.global.u32 [%l20], %r19;\n{end}"
)


ALL_BLOCKS = "barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;"


PHASES = (  # three turns on an mbarrier for two warps; what one writes before it, the other reads after it
    "mov.u32 %r10, shared;\nsetp.eq.s32 %p1, %r2, 0;\n@%p1 mbarrier.init.shared::cta.b64 [%r10], {count};\nbar.sync 0;\n"
    "and.b32 %r4, %r2, 31;\nshr.u32 %r5, %r2, 5;\nxor.b32 %r6, %r5, 1;\nmov.u32 %r7, 0;\nsetp.eq.s32 %p2, %r4, 0;\nmov.u32 %r19, 0;\n"
    "TURN:\nmad.lo.s32 %r11, %r7, 8, %r10;\nmad.lo.s32 %r12, %r5, 4, %r11;\nmad.lo.s32 %r13, %r6, 4, %r11;\nadd.s32 %r14, %r5, 10;\n"
    "@%p2 st.shared.u32 [%r12+64], %r14;\n@%p2 mbarrier.arrive.release.cta.shared::cta.b64 _, [%r10];\nand.b32 %r15, %r7, 1;\n"
    "TRY:\nmbarrier.try_wait.parity.acquire.cta.shared::cta.b64 %p3, [%r10], {parity};\n@!%p3 bra TRY;\n"
    "ld.shared.u32 %r16, [%r13+64];\nadd.s32 %r19, %r19, %r16;\nadd.s32 %r7, %r7, 1;\nsetp.lt.s32 %p4, %r7, 3;\n@%p4 bra TURN;\n" + STORE
)  # fmt: skip
