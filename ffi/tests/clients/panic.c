/* A panic inside the library is a status code in C: on the calling thread (0) and on a worker (1). */
#include <jrs.h>

#include <string.h>

int32_t jrs_debug_panic(jrs_session *session, uint32_t place);

int main(void)
{
    jrs_session *session = NULL;
    uint32_t place;

    if (jrs_session_create(NULL, &session) != JRS_OK)
        return 1;
    for (place = 0; place < 2; place++)
        if (jrs_debug_panic(session, place) != JRS_E_INTERNAL || strstr(jrs_last_error(), "injected") == NULL)
            return 2;
    jrs_session_free(session);
    return 0;
}
