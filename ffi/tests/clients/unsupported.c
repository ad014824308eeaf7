/* A session that asks for bf16 where the processor has no matrix unit (AMX) is refused as JRS_E_UNSUPPORTED, in words, and
 * does not come out in another precision; where there is one, it is made.
 *
 *     ./unsupported HAS_UNIT
 */
#include <jrs.h>

#include <string.h>

int main(int argc, char **argv)
{
    jrs_session_options options;
    jrs_session *session = NULL;
    int32_t code;

    if (argc != 2 || jrs_session_options_init(&options, sizeof options) != JRS_OK)
        return 1;
    options.precision = JRS_PRECISION_BF16;
    code = jrs_session_create(&options, &session);
    if (strcmp(argv[1], "1") == 0) {
        jrs_session_free(session);
        return code == JRS_OK ? 0 : 2;
    }
    if (code != JRS_E_UNSUPPORTED || session != NULL || strstr(jrs_last_error(), "AMX") == NULL)
        return 3;
    /* What the processor can do is still to be had. */
    options.precision = JRS_PRECISION_F32;
    code = jrs_session_create(&options, &session);
    jrs_session_free(session);
    return code == JRS_OK ? 0 : 4;
}
