// Registers two raw volumes from C#. Arguments and files as in ../c/register.c.
//
//     mcs -out:register.exe Jrs.cs Register.cs
//     LD_LIBRARY_PATH=PREFIX/lib mono register.exe model.safetensors PAIR OUT
using System;
using System.Globalization;
using System.IO;
using System.Linq;
using Jrs;

internal static class Program
{
    private static Volume Read(string folder, string name, string raw, Func<int, Array> allocate)
    {
        double[] n = File.ReadAllText(Path.Combine(folder, name + ".txt"))
            .Split((char[])null, StringSplitOptions.RemoveEmptyEntries)
            .Select(word => double.Parse(word, CultureInfo.InvariantCulture)).ToArray();
        byte[] bytes = File.ReadAllBytes(Path.Combine(folder, raw));
        Array voxels = allocate((int)(n[0] * n[1] * n[2]));
        Buffer.BlockCopy(bytes, 0, voxels, 0, bytes.Length);
        return new Volume
        {
            Voxels = voxels,
            Dims = n.Take(3).Select(d => (ulong)d).ToArray(),
            Spacing = n.Skip(3).Take(3).ToArray(),
            Origin = n.Skip(6).Take(3).ToArray(),
            Direction = n.Skip(9).Take(9).ToArray(),
        };
    }

    private static int Main(string[] args)
    {
        string pair = args[1], result_folder = args[2];
        Volume fixedScan = Read(pair, "fixed", "fixed.raw", n => new short[n]);
        Volume movingScan = Read(pair, "moving", "moving.raw", n => new short[n]);
        Volume labels = Read(pair, "moving", "labels.raw", n => new byte[n]);
        Progress progress = (stage, done, total) => { Console.WriteLine("{0} {1}/{2}", stage, done, total); return false; };
        using (Model model = Model.Load(args[0]))
        using (Session session = Session.Create(progress: progress))
        using (Result result = session.Register(model, fixedScan, movingScan, labels, PrealignMode.Rigid))
        {
            Func<string, string> path = name => Path.Combine(result_folder, name);
            result.Write(FileKind.DvfMha, path("dvf.mha"));
            result.Write(FileKind.DvfNifti, path("dvf.nii.gz"));
            result.Write(FileKind.DvfNiftiAnts, path("dvf-ants.nii.gz"));
            result.Write(FileKind.WarpedNifti, path("warped.nii.gz"));
            result.Write(FileKind.LabelsNifti, path("labels.nii.gz"));
            File.WriteAllText(path("qa.json"), result.QaJson());
            File.WriteAllText(path("provenance.json"), result.ProvenanceJson());
            Console.WriteLine("{0} voxels", result.Dvf().Length / 3);

            // A cancelled call, and a model that is none, are exceptions with a code and words.
            using (Cancel cancel = Cancel.Create())
            {
                cancel.Request();
                try { session.Register(model, fixedScan, movingScan, null, PrealignMode.Given, cancel); return 1; }
                catch (JrsException e) { Console.WriteLine("{0}: {1}", e.Code, e.Message); if (e.Code != 700) return 1; }
            }
            try { Model.Load(path("qa.json")); return 1; }
            catch (JrsException e) { Console.WriteLine("{0}: {1}", e.Code, e.Message); if (e.Code != 301) return 1; }
        }
        return 0;
    }
}
