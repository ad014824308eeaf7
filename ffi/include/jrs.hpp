/* libjrs for C++11: handles that free themselves, errors as exceptions. A thin layer over jrs.h, which explains
 * everything. Licence: MIT or Apache-2.0.
 *
 *     jrs::Model model("model.safetensors");
 *     jrs::Session session;
 *     jrs_register_input input = jrs::registration(fixed, moving);
 *     jrs::Result result = session.run(&model, input);
 *     result.write(JRS_FILE_DVF_MHA, "dvf.mha");
 */
#ifndef JRS_HPP
#define JRS_HPP

#include <jrs.h>

#include <array>
#include <exception>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace jrs {

/* A failed call: code() is one of JRS_E_*, what() the message. */
class Error : public std::runtime_error {
public:
    Error(int32_t code, const std::string &message) : std::runtime_error(message), code_(code) {}
    int32_t code() const noexcept { return code_; }

private:
    int32_t code_;
};

inline void check(int32_t code)
{
    if (code != JRS_OK)
        throw Error(code, jrs_last_error());
}

namespace detail {

struct Free {
    void operator()(jrs_model *p) const noexcept { jrs_model_free(p); }
    void operator()(jrs_session *p) const noexcept { jrs_session_free(p); }
    void operator()(jrs_result *p) const noexcept { jrs_result_free(p); }
    void operator()(jrs_cancel *p) const noexcept { jrs_cancel_free(p); }
};

/* A text whose size is asked for first. */
template <class Handle>
std::string text(int32_t (*get)(const Handle *, char *, size_t, size_t *), const Handle *handle)
{
    size_t needed = 0;
    check(get(handle, nullptr, 0, &needed));
    std::vector<char> buffer(needed);
    check(get(handle, buffer.data(), buffer.size(), &needed));
    return std::string(buffer.data());
}

} // namespace detail

/* Structs with their defaults. */
inline jrs_volume volume()
{
    jrs_volume v;
    check(jrs_volume_init(&v, sizeof v));
    return v;
}

inline jrs_contours contours()
{
    jrs_contours c;
    check(jrs_contours_init(&c, sizeof c));
    return c;
}

inline jrs_qa_limits qa_limits()
{
    jrs_qa_limits l;
    check(jrs_qa_limits_init(&l, sizeof l));
    return l;
}

inline jrs_session_options session_options()
{
    jrs_session_options o;
    check(jrs_session_options_init(&o, sizeof o));
    return o;
}

/* The volumes must live until the call has returned. */
inline jrs_register_input registration(const jrs_volume &fixed, const jrs_volume &moving)
{
    jrs_register_input i;
    check(jrs_register_input_init(&i, sizeof i));
    i.fixed = &fixed;
    i.moving = &moving;
    return i;
}

class Model {
public:
    /* public_key: 32 bytes, or nullptr to accept unsigned models. */
    explicit Model(const std::string &path, const uint8_t *public_key = nullptr)
    {
        jrs_model *p = nullptr;
        check(jrs_model_load(path.c_str(), public_key, &p));
        handle_.reset(p);
    }
    Model(const void *bytes, size_t length, const uint8_t *public_key = nullptr)
    {
        jrs_model *p = nullptr;
        check(jrs_model_load_memory(bytes, length, public_key, &p));
        handle_.reset(p);
    }
    std::string card_json() const { return detail::text(jrs_model_card_json, get()); }
    std::string sha256() const { return detail::text(jrs_model_sha256, get()); }
    const jrs_model *get() const noexcept { return handle_.get(); }

private:
    std::unique_ptr<jrs_model, detail::Free> handle_;
};

class Cancel {
public:
    Cancel()
    {
        jrs_cancel *p = nullptr;
        check(jrs_cancel_create(&p));
        handle_.reset(p);
    }
    void request() const noexcept { jrs_cancel_request(get()); }
    void reset() const noexcept { jrs_cancel_reset(get()); }
    const jrs_cancel *get() const noexcept { return handle_.get(); }

private:
    std::unique_ptr<jrs_cancel, detail::Free> handle_;
};

/* Pointers and arrays are views: valid as long as the result lives. */
class Result {
public:
    explicit Result(jrs_result *p) noexcept : handle_(p) {}
    std::array<uint64_t, 3> dims() const
    {
        std::array<uint64_t, 3> d;
        check(jrs_result_dims(get(), d.data()));
        return d;
    }
    /* Interleaved x, y, z. */
    std::vector<float> dvf() const
    {
        size_t needed = 0;
        check(jrs_result_dvf(get(), nullptr, 0, &needed));
        std::vector<float> u(needed);
        check(jrs_result_dvf(get(), u.data(), u.size(), &needed));
        return u;
    }
    std::array<const float *, 3> dvf_view() const
    {
        std::array<const float *, 3> u;
        check(jrs_result_dvf_view(get(), &u[0], &u[1], &u[2]));
        return u;
    }
    const float *warped() const
    {
        const float *voxels = nullptr;
        check(jrs_result_warped_view(get(), &voxels));
        return voxels;
    }
    const uint8_t *labels() const
    {
        const uint8_t *voxels = nullptr;
        check(jrs_result_labels_view(get(), &voxels));
        return voxels;
    }
    jrs_contours contours() const
    {
        jrs_contours c = jrs::contours();
        check(jrs_result_contours_view(get(), &c));
        return c;
    }
    std::array<double, 16> prealign() const
    {
        std::array<double, 16> m;
        check(jrs_result_prealign(get(), m.data()));
        return m;
    }
    /* Moving points to fixed points; 3 numbers per point. */
    std::vector<double> carry_points(const std::vector<double> &points, std::vector<double> *residuals = nullptr,
                                     std::vector<uint32_t> *flags = nullptr) const
    {
        const size_t count = points.size() / 3;
        std::vector<double> carried(3 * count);
        if (residuals)
            residuals->resize(count);
        if (flags)
            flags->resize(count);
        check(jrs_result_carry_points(get(), points.data(), count, carried.data(),
                                      residuals ? residuals->data() : nullptr, flags ? flags->data() : nullptr));
        return carried;
    }
    jrs_qa qa() const
    {
        jrs_qa q;
        q.struct_size = sizeof q;
        check(jrs_result_qa(get(), &q));
        return q;
    }
    jrs_structure_qa structure_qa(uint64_t index) const
    {
        jrs_structure_qa q;
        q.struct_size = sizeof q;
        check(jrs_result_structure_qa(get(), index, &q));
        return q;
    }
    std::string qa_json() const { return detail::text(jrs_result_qa_json, get()); }
    std::string provenance_json() const { return detail::text(jrs_result_provenance_json, get()); }
    void write(uint32_t format, const std::string &path) const { check(jrs_result_write(get(), format, path.c_str())); }
    const jrs_result *get() const noexcept { return handle_.get(); }

private:
    std::unique_ptr<jrs_result, detail::Free> handle_;
};

/* Callbacks may throw: the call is cancelled and the exception comes out of run(). */
class Session {
public:
    /* Stage, units done, units in all; false cancels. */
    typedef std::function<bool(const std::string &, uint64_t, uint64_t)> Progress;
    typedef std::function<void(int32_t, const std::string &)> Log;

    explicit Session(jrs_session_options options = session_options(), Progress progress = Progress(), Log log = Log())
        : callbacks_(new Callbacks)
    {
        callbacks_->progress = std::move(progress);
        callbacks_->log = std::move(log);
        if (callbacks_->progress) {
            options.progress = on_progress;
            options.progress_user = callbacks_.get();
        }
        if (callbacks_->log) {
            options.log = on_log;
            options.log_user = callbacks_.get();
        }
        jrs_session *p = nullptr;
        check(jrs_session_create(&options, &p));
        handle_.reset(p);
    }
    /* model may be nullptr where the input asks for refinement. */
    Result run(const Model *model, const jrs_register_input &input, const Cancel *cancel = nullptr)
    {
        jrs_result *p = nullptr;
        callbacks_->thrown = nullptr;
        const int32_t code = jrs_register(get(), model ? model->get() : nullptr, &input, cancel ? cancel->get() : nullptr, &p);
        Result result(p);
        if (callbacks_->thrown)
            std::rethrow_exception(callbacks_->thrown);
        check(code);
        return result;
    }
    jrs_estimate_result estimate(const Model *model, const jrs_register_input &input)
    {
        jrs_estimate_result e;
        e.struct_size = sizeof e;
        check(jrs_estimate(get(), model ? model->get() : nullptr, &input, &e));
        return e;
    }
    jrs_session *get() const noexcept { return handle_.get(); }

private:
    struct Callbacks {
        Progress progress;
        Log log;
        std::exception_ptr thrown;
    };
    static int32_t on_progress(void *user, const char *stage, uint64_t done, uint64_t total)
    {
        Callbacks &callbacks = *static_cast<Callbacks *>(user);
        try {
            return callbacks.progress(stage, done, total) ? 0 : 1;
        } catch (...) {
            callbacks.thrown = std::current_exception();
            return 1;
        }
    }
    static void on_log(void *user, int32_t level, const char *message)
    {
        Callbacks &callbacks = *static_cast<Callbacks *>(user);
        try {
            callbacks.log(level, message);
        } catch (...) {
            callbacks.thrown = std::current_exception();
        }
    }

    std::unique_ptr<Callbacks> callbacks_;
    std::unique_ptr<jrs_session, detail::Free> handle_;
};

} // namespace jrs

#endif
