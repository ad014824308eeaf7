/* Registers two raw volumes in C++11 with handles that free themselves. Arguments and files as in ../c/register.c.
 *
 *     cmake -S . -B build -DCMAKE_PREFIX_PATH=PREFIX && cmake --build build
 *     build/register model.safetensors PAIR OUT
 */
#include <jrs.hpp>

#include <fstream>
#include <iostream>
#include <iterator>

namespace {

/* A scan or label map with its voxels. */
struct Volume {
    std::vector<char> voxels;
    jrs_volume description;

    Volume(const std::string &name, const std::string &raw, uint32_t dtype) : description(jrs::volume())
    {
        std::ifstream geometry(name + ".txt");
        for (uint64_t &n : description.dims)
            geometry >> n;
        for (double *numbers : {description.spacing, description.origin})
            geometry >> numbers[0] >> numbers[1] >> numbers[2];
        for (double &cosine : description.direction)
            geometry >> cosine;
        if (!geometry)
            throw std::runtime_error(name + ".txt: 18 numbers are needed");
        std::ifstream file(raw, std::ios::binary);
        voxels.assign(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
        description.data = voxels.data();
        description.data_bytes = voxels.size();
        description.dtype = dtype;
    }
    Volume(const Volume &) = delete;
    Volume &operator=(const Volume &) = delete;
};

void save(const std::string &path, const std::string &text)
{
    std::ofstream(path, std::ios::binary) << text;
}

} // namespace

int main(int argc, char **argv)
{
    if (argc != 4) {
        std::cerr << "usage: " << argv[0] << " MODEL PAIR OUT\n";
        return 2;
    }
    const std::string pair = std::string(argv[2]) + "/", out = std::string(argv[3]) + "/";
    try {
        const jrs::Model model(argv[1]);
        jrs::Session session(jrs::session_options(), [](const std::string &stage, uint64_t done, uint64_t total) {
            std::cout << stage << ' ' << done << '/' << total << '\n';
            return true;
        });
        const Volume fixed(pair + "fixed", pair + "fixed.raw", JRS_INT16);
        const Volume moving(pair + "moving", pair + "moving.raw", JRS_INT16);
        const Volume labels(pair + "moving", pair + "labels.raw", JRS_UINT8);

        jrs_register_input input = jrs::registration(fixed.description, moving.description);
        input.labels = &labels.description;
        input.prealign_mode = JRS_PREALIGN_RIGID;
        const jrs::Result result = session.run(&model, input);

        result.write(JRS_FILE_DVF_MHA, out + "dvf.mha");
        result.write(JRS_FILE_DVF_NIFTI, out + "dvf.nii.gz");
        result.write(JRS_FILE_DVF_NIFTI_ANTS, out + "dvf-ants.nii.gz");
        result.write(JRS_FILE_WARPED_NIFTI, out + "warped.nii.gz");
        result.write(JRS_FILE_LABELS_NIFTI, out + "labels.nii.gz");
        save(out + "qa.json", result.qa_json());
        save(out + "provenance.json", result.provenance_json());
        std::cout << "verdict " << result.qa().verdict << ", " << result.dvf().size() / 3 << " voxels\n";

        /* An exception in a callback cancels the call and comes out of it. */
        jrs::Session nervous(jrs::session_options(), [](const std::string &, uint64_t, uint64_t) -> bool {
            throw std::out_of_range("the operator changed her mind");
        });
        try {
            nervous.run(&model, input);
            return 1;
        } catch (const std::out_of_range &e) {
            std::cout << "cancelled: " << e.what() << '\n';
        }
    } catch (const jrs::Error &e) {
        std::cerr << "libjrs says " << e.code() << ": " << e.what() << '\n';
        return 1;
    } catch (const std::exception &e) {
        std::cerr << e.what() << '\n';
        return 1;
    }
    return 0;
}
