"""Proof of the manifests without a cluster.

    check.py manifests --jrs BINARY [FOLDER...]   overlays of this repository, and rendered folders
    check.py metrics FILE                         what a coordinator's /metrics said
    check.py pods FOLDER                          arguments and settings of a rendered folder's pods, as JSON

Every check is also shown a manifest with a mistake, which it must refuse. JRS_KUBECTL lists kubectl programs of several versions,
separated by colons. Exit code 77: something needed is not installed.
"""

import argparse
import contextlib
import copy
import http.server
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

MISSING = 77
try:
    import jsonschema
    import kubernetes_validate
    import yaml
except ImportError as error:
    print(f"{error.name} is not installed (.ci/k8s-requirements.txt)")
    sys.exit(MISSING)

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
KUBERNETES = "1.33"
OVERLAYS = sorted(path.name for path in (HERE.parent / "overlays").iterdir())


class Refused(Exception):
    """A check found a mistake."""


def need(condition, problem):
    if not condition:
        raise Refused(problem)


def program(name):
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.is_file() else shutil.which(name)
    if not found:
        print(f"{name} is not installed")
        sys.exit(MISSING)
    return found


def call(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


# --- rendering


def kubectls():
    named = [path for path in os.environ.get("JRS_KUBECTL", "").split(":") if path]
    return named or [program("kubectl")]


def rendered(folder):
    """The manifests of a folder, the same bytes from every version of kubectl."""
    texts = {}
    for kubectl in kubectls():
        code, text, said = call(kubectl, "kustomize", folder)
        need(code == 0, f"{kubectl} kustomize {folder}: {said}")
        texts[kubectl] = text
    need(len(set(texts.values())) == 1, f"{folder}: {' and '.join(texts)} render different bytes")
    return [document for document in yaml.safe_load_all(text) if document]


# --- schemas


def schema(documents):
    """Strict: unknown kinds and unknown fields are mistakes."""
    own = {
        "jobset.x-k8s.io/v1alpha2": json.loads((HERE / "jobset.schema.json").read_text()),
        "monitoring.coreos.com/v1": json.loads((HERE / "monitoring.schema.json").read_text()),
    }
    for document in documents + [job for job in jobs(documents) if job.get("_copied")]:
        document = {key: value for key, value in document.items() if key != "_copied"}
        name = f"{document.get('kind')} {document.get('metadata', {}).get('name')}"
        try:
            if document.get("apiVersion") in own:
                jsonschema.validate(document, own[document["apiVersion"]])
            else:
                kubernetes_validate.validate(document, KUBERNETES, strict=True)
        except (jsonschema.ValidationError, kubernetes_validate.ValidationError) as error:
            raise Refused(f"{name}: {error.message}") from error
        except kubernetes_validate.SchemaNotFoundError as error:
            raise Refused(f"{name}: no schema for {document.get('apiVersion')} {document.get('kind')}") from error


def jobs(documents):
    """Jobs, whether they stand alone or in a JobSet."""
    found = [document for document in documents if document["kind"] == "Job"]
    for document in documents:
        if document["kind"] != "JobSet":
            continue
        for part in document["spec"]["replicatedJobs"]:
            metadata = {"name": f"{document['metadata']['name']}-{part['name']}", "namespace": document["metadata"].get("namespace")}
            found.append({"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": part["template"]["spec"], "_copied": True})
    return found


# --- checkov

# What is not followed, and why.
ALLOWED = {
    "CKV_K8S_15": "tags are never moved, so there is nothing to pull again",
    "CKV_K8S_35": "the store's credentials are read from the environment, by their usual names",
    "CKV_K8S_43": "the digest is known only where the image was pushed",
    "CKV_K8S_8": "workers: the coordinator judges them by their heartbeats",
    "CKV_K8S_9": "workers: nothing sends requests to them",
}
ALLOWED_FOR_RDMA = {"CKV_K8S_19": "RDMA", "CKV_K8S_25": "IPC_LOCK"}


def checkov(documents):
    allowed = dict(ALLOWED)
    if any(job["spec"]["template"]["spec"].get("hostNetwork") for job in jobs(documents)):
        allowed.update(ALLOWED_FOR_RDMA)
    return checkov_all([(documents, allowed)])


def checkov_all(sets):
    """One call for many sets: it takes seconds to start."""
    with tempfile.TemporaryDirectory() as folder:
        for number, (documents, _) in enumerate(sets):
            plain = [{k: v for k, v in document.items() if k != "_copied"} for document in documents + jobs(documents) if document["kind"] not in ("JobSet", "PodMonitor", "PrometheusRule")]
            (Path(folder) / f"{number}.yaml").write_text(yaml.safe_dump_all(plain))
        code, text, said = call(program("checkov"), "-d", folder, "--framework", "kubernetes", "--skip-download", "--quiet", "--compact", "-o", "json")
        need(text.strip(), f"checkov said nothing: {said}")
        report = json.loads(text)
        need(report["summary"]["passed"] > 20 * len(sets), f"checkov saw too little: {report['summary']}")
        for failed in report["results"]["failed_checks"]:
            allowed = sets[int(Path(failed["file_path"]).stem)][1]
            need(failed["check_id"] in allowed, f"checkov: {failed['check_id']} {failed['check_name']}: {failed['resource']}")


# --- Prometheus


def rules(documents):
    """The alert rules are valid and do what their tests say."""
    found = [document["spec"] for document in documents if document["kind"] == "PrometheusRule"]
    promtool = program("promtool")
    for spec in found:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "rules.yaml").write_text(yaml.safe_dump(spec))
            (Path(folder) / "test.yaml").write_text((HERE / "alerts.test.yaml").read_text())
            for action in (["check", "rules", "rules.yaml"], ["test", "rules", "test.yaml"]):
                done = subprocess.run([promtool, *action], cwd=folder, capture_output=True, text=True)
                need(done.returncode == 0, f"promtool {' '.join(action)}: {done.stdout}{done.stderr}")
        tested = set(re.findall(r"alertname: (\w+)", (HERE / "alerts.test.yaml").read_text()))
        for rule in (rule for group in spec["groups"] for rule in group["rules"]):
            need(rule["alert"] in tested, f"alert {rule['alert']} has no test")


def metrics(text):
    """Names and help texts follow the convention, and rules and dashboard ask for nothing else."""
    # OpenMetrics names a counter's family without `_total`, the older format that promtool reads with it.
    counters = re.findall(r"^# TYPE (\S+) counter$", text, re.M)
    for counter in counters:
        text = re.sub(rf"^# (TYPE|HELP) {counter} ", rf"# \1 {counter}_total ", text, flags=re.M)
    done = subprocess.run([program("promtool"), "check", "metrics"], input=text, capture_output=True, text=True)
    need(done.returncode == 0, f"promtool check metrics: {done.stdout}{done.stderr}")
    known = set(re.findall(r"^# TYPE (\S+) ", text, re.M))
    known |= {name + end for name in set(re.findall(r"^# TYPE (\S+) histogram", text, re.M)) for end in ("_sum", "_count", "_bucket")}
    folder = HERE.parent / "components" / "monitoring"
    for page in ("rules.yaml", "dashboard.json"):
        for name in re.findall(r"\bjrs_[a-z_]+", (folder / page).read_text()):
            need(name in known, f"{page} asks for {name}, which no coordinator shows")


@contextlib.contextmanager
def prometheus(text):
    """A Prometheus that scrapes this page once a second; yields what answers a query with the series found."""

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "application/openmetrics-text; version=1.0.0; charset=utf-8")
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_):
            pass

    page = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=page.serve_forever, daemon=True).start()
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        free.close()
        scrape = {"job_name": "jrs", "scrape_interval": "1s", "static_configs": [{"targets": [f"127.0.0.1:{page.server_port}"]}]}
        (Path(folder) / "prometheus.yaml").write_text(yaml.safe_dump({"scrape_configs": [scrape]}))
        command = [program("prometheus"), f"--config.file={folder}/prometheus.yaml", f"--storage.tsdb.path={folder}/data", f"--web.listen-address={address}"]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

        def ask(expression):
            query = urllib.parse.urlencode({"query": expression})
            try:
                with urllib.request.urlopen(f"http://{address}/api/v1/query?{query}", timeout=30) as reply:
                    return json.load(reply)["data"]["result"]
            except urllib.error.HTTPError as error:
                raise Refused(f"Prometheus refuses {expression}: {error.read().decode()}") from error

        try:
            for _ in range(240):
                time.sleep(0.5)
                # A rate needs two scrapes.
                with contextlib.suppress(urllib.error.URLError, Refused):
                    if any(float(series["value"][1]) >= 3 for series in ask("count_over_time(up[1m])")):
                        break
            else:
                raise Refused("Prometheus did not scrape the page")
            yield ask
        finally:
            server.terminate()
            server.wait()
            page.shutdown()


def panels(text):
    """Every panel of the dashboard has something to show."""
    run = re.search(r'\brun="([^"]+)"', text)[1]
    dashboard = json.loads((HERE.parent / "components" / "monitoring" / "dashboard.json").read_text())
    questions = [(panel["title"], target["expr"]) for panel in dashboard["panels"] for target in panel["targets"]]
    with prometheus(text) as ask:

        def answered(question):
            title, expression = question
            need(ask(expression.replace("$run", run)), f"panel {title!r} shows nothing: {expression}")

        for question in questions:
            answered(question)
        for mistake in (("a label that nothing has", 'jrs_step{run="$run",rank="0"}'), ("no expression", "rate(jrs_steps_total")):
            refuse(answered, f"a panel with {mistake[0]}", mistake, None)
    print(f"a Prometheus that scraped this has answers to {len(questions)} questions of {len(dashboard['panels'])} panels")


# --- what only we can know

PROBES = ("startupProbe", "livenessProbe", "readinessProbe")


def semantics(documents, jrs):
    for job in jobs(documents):
        pod(job, documents, jrs)
    roles = {role(job): job for job in jobs(documents)}
    need(set(roles) == {"coordinator", "worker"}, f"roles {sorted(roles)}")
    listen = ports(roles["coordinator"])
    need(all(probe in container(roles["coordinator"]) for probe in PROBES), "the coordinator lacks a probe")
    to = flag(roles["worker"], "coordinator").rsplit(":", 1)[1]
    need(int(to) == listen["grpc"], f"workers go to port {to}, the coordinator listens on {listen['grpc']}")
    for document in documents:
        kind, spec = document["kind"], document.get("spec", {})
        if kind == "Service":
            for port in spec["ports"]:
                need(port["targetPort"] in listen and port["port"] == listen[port["targetPort"]], f"service port {port}")
        if kind == "PodMonitor":
            need(all(end["port"] in listen for end in spec["podMetricsEndpoints"]), "PodMonitor: no such port")
        if kind == "NetworkPolicy" and document["metadata"]["name"] == "jrs-metrics":
            open_ports = [port["port"] for rule in spec["ingress"] for port in rule["ports"]]
            need(open_ports == [listen["http"]], f"metrics policy opens {open_ports}")
    spec = roles["worker"]["spec"]
    need(spec["completions"] == spec["parallelism"], "completions and parallelism differ")
    settings = next(d["data"] for d in documents if d["kind"] == "ConfigMap" and "JRS_WORKERS" in d["data"])
    need(int(settings["JRS_WORKERS"]) == spec["parallelism"], f"the coordinator waits for {settings['JRS_WORKERS']} of {spec['parallelism']} workers")


def role(job):
    return next(word for word in container(job)["args"] if not word.startswith("-"))


def container(job):
    (only,) = job["spec"]["template"]["spec"]["containers"]
    return only


def flag(job, name):
    return next(word for word in container(job)["args"] if word.startswith(f"--{name}=")).split("=", 1)[1]


def ports(job):
    return {port["name"]: port["containerPort"] for port in container(job).get("ports", [])}


def pod(job, documents, jrs):
    name, spec, only = job["metadata"]["name"], job["spec"]["template"]["spec"], container(job)
    # The image says which version.
    need(re.fullmatch(r".+(:[\w.-]+|@sha256:[0-9a-f]{64})", only["image"]), f"{name}: image {only['image']} has no tag")
    need(not only["image"].endswith(":latest"), f"{name}: the tag `latest` is a different image tomorrow")
    # Variables: all that are used are there, all that are there are used.
    names = {entry["name"] for entry in only.get("env", [])}
    maps = {d["metadata"]["name"]: d["data"] for d in documents if d["kind"] == "ConfigMap"}
    values = {name: "10.0.0.1" for name in names}
    for source in only.get("envFrom", []):
        if "configMapRef" in source:
            map_name = source["configMapRef"]["name"]
            need(map_name in maps, f"{name}: no ConfigMap {map_name}")
            names |= set(maps[map_name])
            values |= maps[map_name]
    for volume in spec["volumes"]:
        if "configMap" in volume:
            need(volume["configMap"]["name"] in maps, f"{name}: no ConfigMap {volume['configMap']['name']}")
    used = set(re.findall(r"\$\((\w+)\)", " ".join(only["args"])))
    need(used <= names, f"{name}: arguments use {sorted(used - names)}, which nothing sets")
    # The binary takes these arguments.
    expanded = [re.sub(r"\$\((\w+)\)", lambda found: values[found[1]], word) for word in only["args"]]
    code, _, said = call(jrs, *expanded, "--help")
    need(code == 0, f"{name}: the command refuses its arguments: {said}")
    binary = binary_text(jrs)
    shared = set().union(*(re.findall(rb"\$\((\w+)\)", " ".join(container(j)["args"]).encode()) for j in jobs(documents)))
    gpu = any("gpu" in limit for limit in only["resources"]["limits"])
    for variable in names - used:
        known = variable.encode() in shared or any(v.encode() in binary for v in (variable, variable.lower()))
        need(known or (gpu and variable.startswith("NCCL_")), f"{name}: the command does not know {variable}")
    # Ports.
    listens = {int(word.rsplit(":", 1)[1]) for word in only["args"] if re.match(r"--(listen|http)=", word)} - {0}
    need(listens == set(ports(job).values()), f"{name}: listens on {sorted(listens)}, shows {ports(job)}")
    for kind in PROBES:
        if kind in only:
            asked = only[kind]["httpGet"]
            need(ports(job).get(asked["port"]) == int(flag(job, "http").rsplit(":", 1)[1]), f"{name}: {kind} asks port {asked['port']}")
            need(asked["path"] in ("/healthz", "/readyz") and asked["path"].encode() in binary, f"{name}: {kind} asks {asked['path']}")
    # Ends: what the binary says by its exit codes, in an order in which the first match wins.
    policy = job["spec"]["podFailurePolicy"]["rules"]
    need(policy[0]["action"] == "FailJob", f"{name}: the first rule must be about bad configuration")
    need(policy[0]["onExitCodes"]["values"] == sorted(hopeless_codes(jrs)), f"{name}: FailJob on {policy[0]['onExitCodes']['values']}")
    need(policy[0]["onExitCodes"]["containerName"] == only["name"], f"{name}: FailJob looks at another container")
    ignored = [c["type"] for rule in policy if rule["action"] == "Ignore" for c in rule["onPodConditions"]]
    need(ignored == ["DisruptionTarget"], f"{name}: ignores {ignored}")
    need(spec["restartPolicy"] == "Never" and job["spec"]["podReplacementPolicy"] == "Failed", f"{name}: replacement")
    if role(job) == "worker":
        grace, least = spec["terminationGracePeriodSeconds"], drain_seconds()
        need(grace > least, f"{name}: {grace} s of grace, leaving may take {least} s")
        shm = [v for v in spec["volumes"] if v.get("emptyDir", {}).get("medium") == "Memory"]
        need(shm, f"{name}: no shared memory")
        need("JRS_COORDINATOR_HOST" in used, f"{name}: the coordinator's address is fixed")
        if job.get("_copied"):
            (host,) = [entry for entry in only["env"] if entry["name"] == "JRS_COORDINATOR_HOST"]
            path = host.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath")
            need(path == "metadata.annotations['jobset.sigs.k8s.io/coordinator']", f"{name}: a literal address breaks under a prefix")


def binary_text(path, cache={}):
    if path not in cache:
        cache[path] = Path(path).read_bytes()
    return cache[path]


def hopeless_codes(jrs, cache=[]):
    """Asked of the binary itself: a flag it does not know, and a configuration that is not there."""
    if not cache:
        cache.append(call(jrs, "worker", "--no-such-flag")[0])
        cache.append(call(jrs, "coordinator", "--config", "/none", "--data", "/none", "--out", "/none")[0])
    return cache


def drain_seconds():
    """How long the decisions let a leaving worker take, and how long it waits for its farewell."""
    total = 0
    for page, constant in (("coordinator/src/decision/watch.rs", "DRAIN"), ("worker/src/cluster/session.rs", "FAREWELL")):
        found = re.search(rf"const {constant}: Duration = Duration::from_secs\((\d+)\)", (ROOT / page).read_text())
        need(found, f"{page} has no {constant}")
        total += int(found[1])
    return total


# --- combinations

# By what a component is known in the rendered manifests.
MARKS = {
    "aws-irsa": lambda documents: "eks.amazonaws.com/role-arn" in str(of_kind(documents, "ServiceAccount")) and "'jrs-store'" not in str(jobs(documents)),
    "cpu-demo": lambda documents: all("2Gi" == container(job)["resources"]["limits"]["memory"] for job in jobs(documents) if role(job) == "worker"),
    "kueue": lambda documents: "kueue.x-k8s.io/queue-name" in str(of_kind(documents, "JobSet")) and of_kind(documents, "JobSet")[0]["spec"]["suspend"],
    "monitoring": lambda documents: of_kind(documents, "PodMonitor") and of_kind(documents, "PrometheusRule") and "grafana_dashboard" in str(of_kind(documents, "ConfigMap")),
    "rdma": lambda documents: any(job["spec"]["template"]["spec"].get("hostNetwork") for job in jobs(documents)),
}


def of_kind(documents, kind):
    return [document for document in documents if document["kind"] == kind]


def combination(documents, components):
    """What was asked for is there, and nothing else."""
    found = {name for name, mark in MARKS.items() if of_kind(documents, "JobSet") or name == "monitoring" if mark(documents)}
    need(found == set(components), f"components {sorted(components)} were asked for, {sorted(found)} are there")


def components(folder):
    """Those that a folder's kustomization adds."""
    text = yaml.safe_load((Path(folder) / "kustomization.yaml").read_text())
    return [Path(path).name for path in text.get("components", [])]


# --- mistakes that must be refused


def edit(document_kind, *path, value=None, remove=False):
    def apply(documents):
        documents = copy.deepcopy(documents)
        place = next(d for d in documents if d["kind"] == document_kind)
        for key in path[:-1]:
            place = place[key]
        if remove:
            del place[path[-1]]
        else:
            place[path[-1]] = value
        return documents

    return apply


WORKER = ("spec", "replicatedJobs", 1, "template", "spec")
COORDINATOR = ("spec", "replicatedJobs", 0, "template", "spec")
POD = ("template", "spec")
ONLY = (*POD, "containers", 0)
def monitored(documents):
    combination(documents, ["monitoring"])


MISTAKES = [
    (monitored, "a component that is missing", edit("PodMonitor", "kind", value="ConfigMap")),
    (schema, "an unknown kind", edit("Namespace", "kind", value="Namespaces")),
    (schema, "an unknown kind of a known group", edit("JobSet", "kind", value="JobSets")),
    (schema, "an unknown field", edit("NetworkPolicy", "spec", "engress", value=[])),
    (schema, "an unknown field in a JobSet", edit("JobSet", "spec", "startPolicy", value={})),
    (schema, "an unknown field in a JobSet's pod", edit("JobSet", *WORKER, *ONLY, "argz", value=[])),
    (schema, "a wrong type in a JobSet's Job", edit("JobSet", *WORKER, "parallelism", value="two")),
    (semantics, "the tag latest", edit("JobSet", *WORKER, *ONLY, "image", value="jrs:latest")),
    (semantics, "no tag", edit("JobSet", *WORKER, *ONLY, "image", value="jrs")),
    (semantics, "an unknown flag", edit("JobSet", *WORKER, *ONLY, "args", 3, value="--runs=$(JRS_RUN)")),
    (semantics, "a port that nobody listens on", edit("JobSet", *COORDINATOR, *ONLY, "ports", 0, "containerPort", value=7070)),
    (semantics, "workers that go elsewhere", edit("JobSet", *WORKER, *ONLY, "args", 2, value="--coordinator=$(JRS_COORDINATOR_HOST):7070")),
    (semantics, "a probe of nothing", edit("JobSet", *COORDINATOR, *ONLY, "livenessProbe", "httpGet", "path", value="/health")),
    (semantics, "no probe", edit("JobSet", *COORDINATOR, *ONLY, "readinessProbe", remove=True)),
    (semantics, "a variable that nothing sets", edit("JobSet", *WORKER, *ONLY, "env", 1, "name", value="POD_ADDRESS")),
    (semantics, "a variable that nothing reads", edit("JobSet", *WORKER, *ONLY, "env", 2, "name", value="JRS_THREADS_MAX")),
    (semantics, "another exit code", edit("JobSet", *WORKER, "podFailurePolicy", "rules", 0, "onExitCodes", "values", value=[2, 77])),
    (semantics, "too little grace", edit("JobSet", *WORKER, *POD, "terminationGracePeriodSeconds", value=60)),
    (semantics, "a literal address", edit("JobSet", *WORKER, *ONLY, "env", 0, value={"name": "JRS_COORDINATOR_HOST", "value": "jrs-coordinator-0-0.jrs"})),
    (semantics, "a name without its hash", edit("JobSet", *COORDINATOR, *POD, "volumes", 0, "configMap", "name", value="jrs-run")),
    (semantics, "another number of workers", edit("JobSet", *WORKER, "parallelism", value=3)),
    (semantics, "a metrics port that is shut", edit("PodMonitor", "spec", "podMetricsEndpoints", 0, "port", value="metrics")),
    (rules, "a rule that is no expression", edit("PrometheusRule", "spec", "groups", 0, "rules", 0, "expr", value="time( > 300")),
    (rules, "a threshold that tests do not expect", edit("PrometheusRule", "spec", "groups", 0, "rules", 0, "expr", value="time() - jrs_last_step_timestamp_seconds > 600")),
    (rules, "an alert without a test", edit("PrometheusRule", "spec", "groups", 0, "rules", 3, "alert", value="JrsSlow")),
    (checkov, "a pod that may write its root", edit("JobSet", *WORKER, *ONLY, "securityContext", "readOnlyRootFilesystem", value=False)),
]


def refuse(check, what, documents, jrs):
    try:
        check(documents, jrs) if check is semantics else check(documents)
    except Refused as refused:
        print(f"  refused, as it must be: {what}: {str(refused).splitlines()[0][:140]}")
        return
    raise Refused(f"{check.__name__} did not notice {what}")


def manifests(jrs, folders):
    print(f"kubectl: {', '.join(kubectls())}")
    sets = []
    for folder in [HERE.parent / "overlays" / name for name in OVERLAYS] + [Path(folder) for folder in folders]:
        documents = rendered(folder)
        schema(documents)
        semantics(documents, jrs)
        rules(documents)
        combination(documents, components(folder))
        host = any(job["spec"]["template"]["spec"].get("hostNetwork") for job in jobs(documents))
        sets.append((documents, ALLOWED | ALLOWED_FOR_RDMA if host else ALLOWED))
        print(f"  {folder.name}: {len(documents)} documents hold")
    checkov_all(sets)
    print("  checkov agrees")
    documents = sets[OVERLAYS.index("monitoring")][0]
    for check, what, mistake in MISTAKES:
        refuse(check, what, mistake(documents), jrs)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    one = actions.add_parser("manifests")
    one.add_argument("--jrs", required=True)
    one.add_argument("folders", nargs="*")
    actions.add_parser("metrics").add_argument("file")
    actions.add_parser("pods").add_argument("folder")
    args = parser.parse_args()
    try:
        if args.action == "pods":
            documents = rendered(Path(args.folder))
            settings = {}
            for document in documents:
                settings |= document["data"] if document["kind"] == "ConfigMap" and "JRS_RUN" in document["data"] else {}
            pods = {role(job): container(job)["args"] for job in jobs(documents)}
            grace = {role(job): job["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] for job in jobs(documents)}
            print(json.dumps({"args": pods, "settings": settings, "grace": grace}))
            return 0
        if args.action == "manifests":
            manifests(args.jrs, args.folders)
            return 0
        text = Path(args.file).read_text()
        metrics(text)
        for what, wrong in (
            ("another unit than seconds", text.replace("jrs_checkpoint_seconds", "jrs_checkpoint_milliseconds")),
            ("no help text", re.sub(r"^# HELP jrs_generation .*\n", "", text, flags=re.M)),
            ("a metric that is gone", text.replace("jrs_stragglers", "jrs_slow_workers")),
        ):
            refuse(metrics, what, wrong, None)
        panels(text)
        print("metrics hold")
    except Refused as refused:
        print(f"REFUSED: {refused}")
        return 1
    return 0


sys.exit(main())
