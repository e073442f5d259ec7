"""What pyproject.toml can say of a build only in a way that setuptools calls experimental."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(  # no Python in it: a library that `analysis.bhattacharyya.cpu` loads
            "analysis.bhattacharyya._cpu",
            ["analysis/bhattacharyya/cpu.c"],
            # For no processor in particular: what it can do is found out when the kernel runs.
            extra_compile_args=["-O3", "-ffp-contract=fast", "-fno-math-errno"],
            optional=True,  # without a compiler, or with one but GCC and Clang, PyTorch serves
        )
    ]
)
