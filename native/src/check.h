/* Runtime assertions of debug builds (-DBP_DEBUG): the test driver's, under sanitizers and without.
 *
 * A broken invariant ends the process by abort(3), with one line on stderr: what does not hold, where that is written, and
 * which function found it. A release build compiles nothing of this: its object code is the same as without
 * (tests/native/test_checks.py).
 */
#ifndef BP_CHECK_H
#define BP_CHECK_H

#include "internal.h"

#ifdef BP_DEBUG

struct check_place {
    const char *file;
    int line;
    const char *function;
};

#define BP_HERE ((struct check_place){__FILE__, __LINE__, __func__})
#define BP_DEBUG_ONLY(statement) statement

/* Ends the process unless the condition holds. */
#define BP_ASSERT(condition) ((condition) ? (void)0 : bp__check_failed(#condition, BP_HERE, BP_HERE))
/* The calling thread is from now on the engine's thread t; NULL: none. */
#define BP_CHECK_ENTER(t) bp__check_enter(t)
/* The caller is the engine's thread t; its ready list and pool are consistent. */
#define BP_CHECK_OWN(t) bp__check_own((t), BP_HERE)
/* The same, and each list of the thread is consistent from end to end; no pipe is lost. For the end of a turn. */
#define BP_CHECK_THREAD(t) bp__check_thread((t), BP_HERE)
/* The splice is on t's list, and its legs and directions are consistent. Not within a step of the pump. */
#define BP_CHECK_SPLICE(t, s) bp__check_splice((t), (s), BP_HERE)
/* The same, and something will go on with each direction: an event, the tick, or a turn. */
#define BP_CHECK_WAITS(t, s) bp__check_waits((t), (s), BP_HERE)
/* The splice has ended and is on no list: nothing of it belongs to a thread any more. */
#define BP_CHECK_ENDED(s) bp__check_ended((s), BP_HERE)
/* The fields of a TLS connection agree. Not within a call of OpenSSL. */
#define BP_CHECK_TLS(tls) bp__check_tls((tls), BP_HERE)

_Noreturn void bp__check_failed(const char *condition, struct check_place stated, struct check_place found);
void bp__check_enter(const struct bp_thread *thread);
void bp__check_own(const struct bp_thread *thread, struct check_place found);
void bp__check_thread(const struct bp_thread *thread, struct check_place found);
void bp__check_splice(const struct bp_thread *thread, const bp_splice *splice, struct check_place found);
void bp__check_waits(const struct bp_thread *thread, const bp_splice *splice, struct check_place found);
void bp__check_ended(const bp_splice *splice, struct check_place found);
void bp__check_tls(const bp_tls *tls, struct check_place found);

#else

#define BP_DEBUG_ONLY(statement)
#define BP_ASSERT(condition) ((void)sizeof(condition))
#define BP_CHECK_ENTER(t) ((void)0)
#define BP_CHECK_OWN(t) ((void)0)
#define BP_CHECK_THREAD(t) ((void)0)
#define BP_CHECK_SPLICE(t, s) ((void)0)
#define BP_CHECK_WAITS(t, s) ((void)0)
#define BP_CHECK_ENDED(s) ((void)0)
#define BP_CHECK_TLS(tls) ((void)0)

#endif

#endif
