// bind_models.cpp - models and what works with one, in Python.

#include <algorithm>
#include <atomic>
#include <iterator>
#include <list>

#include "bind.h"
#include "device.h"
#include "importance.h"
#include "larger.h"
#include "probe.h"
#include "snapshot.h"
#include "together.h"

namespace {

const char *const kv_names[] = {"f16", "f32", "q8"}; // of qwen3_kv_type

struct Model {
    qwen3_model *model;
    Model(const nb::bytes &path, int threads, uint64_t expert_bytes) {
        qwen3_error err;
        string name = path_of(path);
        {
            nb::gil_scoped_release release;
            model = qwen3_model_open(name.c_str(), threads, expert_bytes, &err);
        }
        if (!model) raise(err);
    }
    Model(const Model &) = delete;
    ~Model() { qwen3_model_close(model); }

    nb::dict config() const {
        const qwen3_config *c = qwen3_model_config(model);
        nb::dict d;
        d["arch"] = c->arch;
        d["n_layers"] = c->n_layers;
        d["n_embd"] = c->n_embd;
        d["n_heads"] = c->n_heads;
        d["n_kv_heads"] = c->n_kv_heads;
        d["head_dim"] = c->head_dim;
        d["n_ff"] = c->n_ff;
        d["n_vocab"] = c->n_vocab;
        d["n_ctx_train"] = c->n_ctx_train;
        d["n_experts"] = c->n_experts;
        d["n_experts_used"] = c->n_experts_used;
        d["n_ff_expert"] = c->n_ff_expert;
        d["rope_theta"] = c->rope_theta;
        d["rms_eps"] = c->rms_eps;
        d["yarn_factor"] = c->yarn_factor;
        d["tied_embedding"] = c->tied_embedding;
        d["kv"] = kv_names[c->default_kv];
        return d;
    }
    void approximate(float prefer, float drop) {
        qwen3_error err;
        if (qwen3_model_approximate(model, {prefer, drop}, &err) != QWEN3_OK) raise(err);
    }
    nb::dict expert_stats() const {
        qwen3_expert_stats s = qwen3_model_expert_stats(model);
        nb::dict d;
        d["budget_bytes"] = s.budget;
        d["used_bytes"] = s.used;
        d["hits"] = s.hits;
        d["misses"] = s.misses;
        d["guesses"] = s.guesses;
        d["right_guesses"] = s.right_guesses;
        d["bytes_read"] = s.bytes_read;
        d["stall_s"] = s.stall_s;
        d["direct"] = s.direct;
        return d;
    }
    void use_gpu(int device, int layers, uint64_t expert_bytes) {
        qwen3_gpu_share share = {device, layers, expert_bytes};
        qwen3_error err;
        qwen3_status status;
        {
            nb::gil_scoped_release release;
            status = qwen3_model_use_gpu(model, &share, &err);
        }
        if (status != QWEN3_OK) raise(err);
    }
    nb::dict gpu_stats() const {
        qwen3_gpu_stats s = qwen3_model_gpu_stats(model);
        nb::dict d;
        d["n_layers"] = s.n_layers;
        d["bytes"] = s.bytes;
        d["expert_bytes"] = s.expert_bytes;
        d["n_slots"] = s.n_slots;
        d["hits"] = s.hits;
        d["misses"] = s.misses;
        d["copied"] = s.copied;
        d["computed"] = s.computed;
        d["bytes_copied"] = s.bytes_copied;
        d["stall_s"] = s.stall_s;
        return d;
    }
};

struct Importance {
    qwen3_importance *importance;
    explicit Importance(const Model &m) {
        qwen3_error err;
        importance = qwen3_importance_new(m.model, &err);
        if (!importance) raise(err);
    }
    Importance(const Importance &) = delete;
    ~Importance() { qwen3_importance_free(importance); }

    nb::tuple inputs(size_t index) const {
        if (index >= qwen3_importance_n_matrices(importance)) throw nb::index_error();
        qwen3_inputs in = qwen3_importance_inputs(importance, index);
        size_t n = (size_t)in.n_experts, n_in = (size_t)in.n_in;
        double *sums = new double[n * n_in];
        nb::capsule sums_owner = owner_of(sums);
        int64_t *counts = new int64_t[n];
        nb::capsule counts_owner = owner_of(counts);
        std::memcpy(sums, in.sums, n * n_in * sizeof *sums);
        std::memcpy(counts, in.counts, n * sizeof *counts);
        return nb::make_tuple(
            in.name, nb::ndarray<nb::numpy, double, nb::ndim<2>>(sums, {n, n_in}, sums_owner),
            nb::ndarray<nb::numpy, int64_t, nb::ndim<1>>(counts, {n}, counts_owner));
    }
};

// Without the GIL a second thread could enter a session that computes: it is turned away.
class Turn {
    std::atomic_flag &busy;

  public:
    explicit Turn(std::atomic_flag &flag) : busy(flag) {
        if (busy.test_and_set(std::memory_order_acquire))
            raise({QWEN3_ERR_ARG, "the session is in use by another thread"});
    }
    Turn(const Turn &) = delete;
    ~Turn() { busy.clear(std::memory_order_release); }
};

using Routes = nb::ndarray<const int32_t, nb::ndim<3>, nb::c_contig, nb::device::cpu>;

struct Snapshot {
    qwen3_snapshot *snapshot;
    explicit Snapshot(qwen3_snapshot *x) : snapshot(x) {}
    Snapshot(const Snapshot &) = delete;
    ~Snapshot() { qwen3_snapshot_free(snapshot); }

    std::vector<int32_t> ids() const {
        const int32_t *ids = qwen3_snapshot_ids(snapshot);
        return std::vector<int32_t>(ids, ids + qwen3_snapshot_len(snapshot));
    }
};

struct Session {
    qwen3_session *session;
    size_t n_vocab, n_layers, n_used;
    std::vector<int32_t> forced, forced_guesses;
    mutable std::atomic_flag busy = ATOMIC_FLAG_INIT;
    Session(const Model &m, int32_t n_ctx, const string &kv) {
        const char *const *name = std::find(std::begin(kv_names), std::end(kv_names), kv);
        if (name == std::end(kv_names)) throw nb::value_error("kv is \"f16\", \"f32\" or \"q8\"");
        qwen3_error err;
        session = qwen3_session_new(m.model, n_ctx, (qwen3_kv_type)(name - kv_names), &err);
        if (!session) raise(err);
        n_vocab = (size_t)qwen3_model_config(m.model)->n_vocab;
        n_layers = (size_t)qwen3_model_config(m.model)->n_layers;
        n_used = (size_t)qwen3_model_config(m.model)->n_experts_used;
    }
    Session(const Session &) = delete;
    ~Session() { qwen3_session_free(session); }

    int64_t sync(const std::vector<int32_t> &ids) {
        Turn turn(busy);
        qwen3_error err;
        int64_t reused;
        {
            nb::gil_scoped_release release;
            reused = qwen3_sync(session, ids.data(), ids.size(), &err);
        }
        if (reused < 0) raise(err);
        return reused;
    }
    void extend(const std::vector<int32_t> &ids) {
        Turn turn(busy);
        qwen3_error err;
        qwen3_status status;
        {
            nb::gil_scoped_release release;
            status = qwen3_extend(session, ids.data(), ids.size(), &err);
        }
        if (status != QWEN3_OK) raise(err);
    }
    std::vector<int32_t> copied(const Routes &routes) const {
        if (routes.shape(1) != n_layers || routes.shape(2) != n_used)
            throw nb::value_error("routes are int32[tokens, layers, experts used]");
        return {routes.data(), routes.data() + routes.size()};
    }
    void force_routes(const Routes &routes, const std::optional<Routes> &guesses) {
        Turn turn(busy);
        qwen3_error err;
        std::vector<int32_t> to = copied(routes), guess;
        if (guesses) guess = copied(*guesses);
        if (guesses && guess.size() != to.size())
            throw nb::value_error("there are as many guesses as routes");
        if (qwen3_session_force_routes(session, to.data(), guesses ? guess.data() : nullptr,
                                       routes.shape(0), &err) != QWEN3_OK)
            raise(err);
        forced = std::move(to); // the data stay where they are
        forced_guesses = std::move(guess);
    }
    void observe(const Importance *importance) {
        Turn turn(busy);
        qwen3_error err;
        qwen3_importance *to = importance ? importance->importance : nullptr;
        if (qwen3_session_observe(session, to, &err) != QWEN3_OK) raise(err);
    }
    OwnedRows extend_logits(const std::vector<int32_t> &ids) {
        Turn turn(busy);
        // What does not fit would be an error: no memory is taken for it.
        size_t n = ids.size() > qwen3_session_n_ctx(session) ? 0 : ids.size();
        float *logits = new float[n * n_vocab];
        nb::capsule owner = owner_of(logits);
        qwen3_error err;
        qwen3_status status;
        {
            nb::gil_scoped_release release;
            status = qwen3_extend_logits(session, ids.data(), ids.size(), logits, &err);
        }
        if (status != QWEN3_OK) raise(err);
        return {logits, {n, n_vocab}, owner};
    }
    void fill(size_t n) {
        Turn turn(busy);
        qwen3_error err;
        qwen3_status status;
        {
            nb::gil_scoped_release release;
            status = qwen3_session_fill(session, n, &err);
        }
        if (status != QWEN3_OK) raise(err);
    }
    Snapshot *snapshot(size_t start) const {
        Turn turn(busy);
        qwen3_error err;
        qwen3_snapshot *x;
        {
            nb::gil_scoped_release release;
            x = qwen3_session_snapshot(session, start, &err);
        }
        if (!x) raise(err);
        return new Snapshot(x);
    }
    void restore(const Snapshot &x) {
        Turn turn(busy);
        qwen3_error err;
        qwen3_status status;
        {
            nb::gil_scoped_release release;
            status = qwen3_session_restore(session, x.snapshot, &err);
        }
        if (status != QWEN3_OK) raise(err);
    }
    template <auto move> void file(const nb::bytes &path) {
        Turn turn(busy);
        string name = path_of(path);
        qwen3_error err;
        qwen3_status status;
        {
            nb::gil_scoped_release release;
            status = move(session, name.c_str(), &err);
        }
        if (status != QWEN3_OK) raise(err);
    }
    nb::ndarray<nb::numpy, float, nb::ndim<1>> logits() const {
        Turn turn(busy);
        const float *logits = qwen3_session_logits(session);
        if (!logits)
            raise({QWEN3_ERR_ARG, "there are no logits yet: sync the session first"});
        float *copy = new float[n_vocab];
        nb::capsule owner = owner_of(copy);
        std::memcpy(copy, logits, n_vocab * sizeof *copy);
        return {copy, {n_vocab}, owner};
    }
    int32_t sample(float temperature, int top_k, float top_p, float min_p, float presence,
                   float repetition, uint64_t seed, size_t generated_from, nb::handle matcher) {
        Turn turn(busy);
        qwen3_error err;
        qwen3_sampling how = {temperature, top_k, top_p, min_p, presence, repetition, seed};
        int32_t token =
            matcher.is_none()
                ? qwen3_sample(session, &how, generated_from, &err)
                : qwen3_sample_matching(session, &how, generated_from, matcher_of(matcher), &err);
        if (token < 0) raise(err);
        return token;
    }
    std::vector<int32_t> ids() const {
        Turn turn(busy);
        const int32_t *ids = qwen3_session_ids(session);
        return std::vector<int32_t>(ids, ids + qwen3_session_len(session));
    }
};

void extend_together(const std::vector<Session *> &sessions, const std::vector<int32_t> &tokens) {
    if (sessions.size() != tokens.size()) throw nb::value_error("a token for each session");
    std::list<Turn> turns;
    std::vector<qwen3_session *> native;
    for (auto at = sessions.begin(); at != sessions.end(); ++at) {
        if (!*at) throw nb::type_error("None is no session");
        bool first = std::find(sessions.begin(), at, *at) == at; // the engine refuses another
        if (first) turns.emplace_back((*at)->busy);
        native.push_back((*at)->session);
    }
    qwen3_error err;
    qwen3_status status;
    {
        nb::gil_scoped_release release;
        status = qwen3_extend_together(native.data(), tokens.data(), native.size(), &err);
    }
    if (status != QWEN3_OK) raise(err);
}

} // namespace

qwen3_model *model_of(nb::handle h) { return nb::cast<const Model &>(h).model; }

void bind_models(nb::module_ &m) {
    nb::class_<Snapshot>(m, "Snapshot")
        .def_prop_ro("start", [](const Snapshot &x) { return qwen3_snapshot_start(x.snapshot); })
        .def_prop_ro("n_bytes", [](const Snapshot &x) { return qwen3_snapshot_bytes(x.snapshot); })
        .def("__len__", [](const Snapshot &x) { return qwen3_snapshot_len(x.snapshot); })
        .def("ids", &Snapshot::ids);

    nb::class_<Session>(m, "Session")
        .def_prop_ro("n_ctx", [](const Session &s) { return qwen3_session_n_ctx(s.session); })
        .def_prop_ro("kv_bytes", [](const Session &x) { return qwen3_session_kv_bytes(x.session); })
        .def("__len__", [](const Session &s) { return qwen3_session_len(s.session); })
        .def("ids", &Session::ids)
        .def("sync", &Session::sync, "ids"_a)
        .def("extend", &Session::extend, "ids"_a)
        .def("force_routes", &Session::force_routes, "routes"_a, "guesses"_a = nb::none())
        .def("observe", &Session::observe, "importance"_a.none(), nb::keep_alive<1, 2>())
        .def("extend_logits", &Session::extend_logits, "ids"_a)
        .def("fill", &Session::fill, "n"_a)
        .def("snapshot", &Session::snapshot, "start"_a)
        .def("restore", &Session::restore, "snapshot"_a)
        .def("save", &Session::file<qwen3_session_save>, "path"_a)
        .def("load", &Session::file<qwen3_session_load>, "path"_a)
        .def("logits", &Session::logits)
        .def("sample", &Session::sample, "temperature"_a, "top_k"_a, "top_p"_a, "min_p"_a,
             "presence_penalty"_a, "repetition_penalty"_a, "seed"_a, "generated_from"_a,
             "matcher"_a.none() = nb::none())
        .def("cancel", [](Session &s) { qwen3_session_cancel(s.session); });

    m.def("extend_together", &extend_together, "sessions"_a, "tokens"_a);
    m.attr("TOGETHER") = (int)QWEN3_TOGETHER;

    nb::class_<Model>(m, "Model")
        .def(nb::init<const nb::bytes &, int, uint64_t>(), "path"_a, "threads"_a = 0,
             "expert_bytes"_a = 0)
        .def_prop_ro("config", &Model::config)
        .def_prop_ro("threads", [](const Model &x) { return qwen3_model_n_threads(x.model); })
        .def_prop_ro("expert_stats", &Model::expert_stats)
        .def("approximate", &Model::approximate, "prefer"_a, "drop"_a)
        .def("guess",
             [](const Model &x, std::optional<bool> on) {
                 qwen3_model_guess(x.model, !on   ? QWEN3_GUESS_TRY
                                            : *on ? QWEN3_GUESS_ON
                                                  : QWEN3_GUESS_OFF);
             },
             "on"_a.none())
        .def("use_gpu", &Model::use_gpu, "device"_a, "layers"_a, "expert_bytes"_a)
        .def_prop_ro("gpu_stats", &Model::gpu_stats)
        .def_prop_ro("isa", [](const Model &x) { return qwen3_model_isa(x.model); })
        .def("metadata",
             [](const Model &x, int64_t max) { return metadata(qwen3_model_file(x.model), max); },
             "max_items"_a = -1)
        .def("tokenizer",
             [](const Model &x) { return new_tokenizer(qwen3_model_file(x.model)); })
        .def("session",
             [](const Model &x, int32_t n_ctx, const string &kv) {
                 return new Session(x, n_ctx, kv);
             },
             "n_ctx"_a, "kv"_a, nb::keep_alive<0, 1>());

    nb::class_<Importance>(m, "Importance")
        .def(nb::init<const Model &>(), "model"_a, nb::keep_alive<1, 2>())
        .def("__len__", [](const Importance &x) { return qwen3_importance_n_matrices(x.importance); })
        .def("inputs", &Importance::inputs, "index"_a);
}
