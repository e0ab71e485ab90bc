//go:build linux

package deploy

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/facebookgo/grace/internal/testserver/driver"
)

// The image is built and run by podman, as docker would. What the Dockerfile
// finds on the network, the image golang, is made here: this machine's Go.
func TestDockerfile(t *testing.T) {
	t.Parallel()
	need(t, "podman", "crun")
	if !driver.Isolate(t) {
		return
	}
	goroot, gocache := run(t, "go", "env", "GOROOT"), run(t, "go", "env", "GOCACHE")
	mount(t, "/sys/fs/cgroup") // containers are started without
	mount(t, "/run")
	dir := t.TempDir()
	mount(t, dir) // the images are layered there, which not every file system can do
	command := func(args ...string) *exec.Cmd {
		return exec.Command("podman", append([]string{
			"--root", dir + "/root", "--runroot", dir + "/run", "--cgroup-manager", "cgroupfs", "--events-backend", "none",
		}, args...)...)
	}
	podman := func(args ...string) string {
		t.Helper()
		return output(t, command(args...))
	}
	build := []string{"build", "--pull=never", "--isolation", "chroot", "--network", "host"}
	start := []string{"run", "--network", "host", "--cgroups=disabled", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096"}

	// Does it work at all?
	for _, args := range [][]string{
		append(build, "-t", "golang:1", baseImage(t, filepath.Join(dir, "base"))),
		append(start, "--rm", "golang:1", "/bin/sh", "-c", "exit"),
	} {
		if out, err := command(args...).CombinedOutput(); err != nil {
			t.Skipf("podman %s does not work here: %v\n%s", args[0], err, out)
		}
	}

	podman(append(build, "-v", goroot+":/usr/local/go:ro", "-v", gocache+":/gocache",
		"-f", root+"/gracedemo/deploy/Dockerfile", "-t", "gracedemo", root)...)
	podman(append(start, "-d", "--name", "gracedemo", "gracedemo")...)
	defer func() {
		if t.Failed() {
			t.Logf("the demo said:\n%s", podman("logs", "gracedemo"))
		}
	}()
	serving(t)
	container := func() string { return podman("inspect", "gracedemo", "--format", "{{.State.Pid}} {{.State.Status}}") }
	before := container()
	pid, _, _ := strings.Cut(before, " ")
	restartUnderLoad(t, func(n int) {
		switch {
		case n == 0:
			podman("exec", "gracedemo", "/gracedemo", "-restart")
		case n < 3:
			podman("kill", "-s", "USR2", "gracedemo")
		default: // what that does
			run(t, "kill", "-USR2", pid)
		}
	})
	if now := container(); now != before {
		t.Errorf("podman knows %q, before the restarts it was %q", now, before)
	}

	answered := slowly(t)
	podman("stop", "-t", "70", "gracedemo")
	answered()
	if code := podman("inspect", "gracedemo", "--format", "{{.State.ExitCode}}"); code != "0" {
		t.Errorf("after the stop the container's exit status is %s", code)
	}
}

// baseImage makes the directory from which an image is built that has nothing but
// a shell. Go is mounted into it.
func baseImage(t *testing.T, dir string) string {
	t.Helper()
	libraries, err := exec.Command("ldd", "/bin/sh").Output()
	if err != nil {
		t.Logf("ldd: %v", err) // a static shell
	}
	for _, file := range append(regexp.MustCompile(`/\S+`).FindAllString(string(libraries), -1), "/bin/sh") {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		to := filepath.Join(dir, file)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, b, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "tmp"), 0o777); err != nil {
		t.Fatal(err)
	}
	content := "FROM scratch\nCOPY . /\nENV PATH=/usr/local/go/bin:/bin GOCACHE=/gocache\n"
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

// No cluster is at hand. kubectl itself decodes the objects into those that the
// cluster knows, and what it does not know is missing then.
func TestKubernetesObjectsHaveNoUnknownFields(t *testing.T) {
	need(t, "kubectl")
	for _, object := range objects(t) {
		written := decode(t, object)
		kind := fmt.Sprint(written["kind"])
		var known map[string]any
		switch kind {
		case "Deployment":
			known = decode(t, kubectl(t, object, "set", "resources", "--limits=cpu=1"))
		case "Service":
			known = decode(t, kubectl(t, object, "set", "selector", "app=gracedemo"))
		default:
			t.Fatalf("how to check a %s?", kind)
		}
		for path, value := range leaves(written) {
			if got := leaves(known)[path]; got != value {
				t.Errorf("%s: %s is %q to kubectl, written %q", kind, path, got, value)
			}
		}
	}
}

const image = "localhost/gracedemo"

func TestKubernetesDeploymentFitsTheDemo(t *testing.T) {
	need(t, "kubectl")
	var deployment, service map[string]string
	for _, object := range objects(t) {
		switch o := decode(t, object); o["kind"] {
		case "Deployment":
			deployment = leaves(o)
		case "Service":
			service = leaves(o)
		}
	}
	const pod, container = ".spec.template.spec", ".spec.template.spec.containers[0]"
	number := func(path string) int {
		t.Helper()
		n, err := strconv.Atoi(deployment[path])
		if err != nil {
			t.Errorf("%s: %v", path, err)
		}
		return n
	}

	// Kubernetes counts from the beginning of the pause; the demo drains for a
	// minute at most.
	pause, grace := number(container+".lifecycle.preStop.sleep.seconds"), number(pod+".terminationGracePeriodSeconds")
	if grace <= pause+60 {
		t.Errorf("pods are killed after %d s, %d s of which pass before they are told to stop: too early for a drain of 60 s", grace, pause)
	}
	if unavailable := deployment[".spec.strategy.rollingUpdate.maxUnavailable"]; unavailable != "0" {
		t.Errorf("%s pods may be missing during an update", unavailable)
	}
	ports := map[string]string{} // number by name
	for i, addr := range []string{"48567", "48568", "48569"} {
		port := fmt.Sprintf("%s.ports[%d]", container, i)
		ports[deployment[port+".name"]] = deployment[port+".containerPort"]
		if deployment[port+".containerPort"] != addr {
			t.Errorf("port %d is %s, the demo's is %s", i, deployment[port+".containerPort"], addr)
		}
		if name := service[fmt.Sprintf(".spec.ports[%d].targetPort", i)]; ports[name] != addr {
			t.Errorf("the service's port %d leads to %q, which is %q", i, name, ports[name])
		}
	}
	if probe := deployment[container+".readinessProbe.httpGet.port"]; ports[probe] != "48567" {
		t.Errorf("the probe's port is %q", probe)
	}
	if deployment[container+".readinessProbe.httpGet.path"] != path {
		t.Errorf("the probe's path is not the demo's, %s", path)
	}
	for what, app := range map[string]string{
		"deployment's": deployment[".spec.selector.matchLabels.app"],
		"service's":    service[".spec.selector.app"],
	} {
		if label := deployment[".spec.template.metadata.labels.app"]; app == "" || app != label {
			t.Errorf("the %s selector is %q, the pods' label %q", what, app, label)
		}
	}
	if deployment[container+".command[0]"] != "" || deployment[container+".args[0]"] != "" {
		t.Errorf("the image's entry point is replaced: then nobody stays")
	}
	if deployment[container+".image"] != image {
		t.Errorf("the image is %q", deployment[container+".image"])
	}
}

// objects returns the objects of kubernetes.yaml in JSON.
func objects(t *testing.T) (all []string) {
	t.Helper()
	out := run(t, "kubectl", "label", "--local", "-f", "kubernetes.yaml", "app=gracedemo", "--overwrite", "-o", "json")
	for in := json.NewDecoder(strings.NewReader(out)); ; {
		var object json.RawMessage
		if err := in.Decode(&object); err == io.EOF {
			return all
		} else if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		all = append(all, string(object))
	}
}

// kubectl runs a command of kubectl on one object, without a cluster.
func kubectl(t *testing.T, object string, args ...string) string {
	t.Helper()
	args = append(args[:2:2], append([]string{"--local", "-f", "-", "-o", "json"}, args[2:]...)...)
	cmd := exec.Command("kubectl", args...)
	cmd.Stdin = strings.NewReader(object)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func decode(t *testing.T, object string) (fields map[string]any) {
	t.Helper()
	if err := json.Unmarshal([]byte(object), &fields); err != nil {
		t.Fatalf("%v\n%s", err, object)
	}
	return fields
}

// leaves returns the values of an object by their paths.
func leaves(object any) map[string]string {
	all := map[string]string{}
	var walk func(path string, value any)
	walk = func(path string, value any) {
		switch value := value.(type) {
		case map[string]any:
			for name, v := range value {
				walk(path+"."+name, v)
			}
		case []any:
			for i, v := range value {
				walk(fmt.Sprintf("%s[%d]", path, i), v)
			}
		default:
			all[path] = fmt.Sprint(value)
		}
	}
	walk("", object)
	return all
}
