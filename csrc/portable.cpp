// Symbols that current compilers take from a newer C or C++ library than old systems have, defined here instead. The linker binds to
// these; the extension exports only its entry point (exports.map). release/inspection.py finds any that are missing here.
#include <new>
#include <sstream>

#ifdef __GLIBCXX__
// Since GCC 9 the default constructors are functions in libstdc++ (GLIBCXX_3.4.26), no longer inline.
template std::basic_stringstream<char>::basic_stringstream();
template std::basic_ostringstream<char>::basic_ostringstream();

// Since GCC 11, for sizes that overflow (GLIBCXX_3.4.29). Optimised code here does not use it.
namespace std {
void __throw_bad_array_new_length() { throw bad_array_new_length(); }
}  // namespace std
#endif

#ifdef __GLIBC__
// Headers of libstdc++ ask the C library whether the process is single-threaded, which versions before 2.32 cannot tell. Assume not.
extern "C" char __libc_single_threaded;
char __libc_single_threaded = 0;
#endif
