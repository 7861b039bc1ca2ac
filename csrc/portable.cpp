// What compilers of today take from a newer C or C++ library than old systems have, defined here instead. The linker binds to these:
// the extension exports nothing but its entry (exports.map). release/inspection.py sees what is missing here.
#include <new>
#include <sstream>

#ifdef __GLIBCXX__
// Since GCC 9 the constructors without arguments are functions of libstdc++ (GLIBCXX_3.4.26), and no longer inline.
template std::basic_stringstream<char>::basic_stringstream();
template std::basic_ostringstream<char>::basic_ostringstream();

// Since GCC 11, for sizes that overflow (GLIBCXX_3.4.29). Optimised code here does not ask for it.
namespace std {
void __throw_bad_array_new_length() { throw bad_array_new_length(); }
}  // namespace std
#endif

#ifdef __GLIBC__
// Headers of libstdc++ ask the C library whether there are other threads, which versions before 2.32 cannot say. There may be.
extern "C" char __libc_single_threaded;
char __libc_single_threaded = 0;
#endif
