// A panic inside the library is an exception with a code in C#.
using System.Runtime.InteropServices;
using Jrs;

internal static class Panic
{
    [DllImport("libjrs.so.0")] private static extern int jrs_debug_panic(Session session, uint place);

    private static int Main()
    {
        using (Session session = Session.Create())
            for (uint place = 0; place < 2; place++)
            {
                try { JrsException.Check(jrs_debug_panic(session, place)); return 1; }
                catch (JrsException e) { if (e.Code != 900 || !e.Message.Contains("injected")) return 2; }
            }
        return 0;
    }
}
