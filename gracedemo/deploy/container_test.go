//go:build linux

package deploy

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/facebookgo/grace/internal/testserver/driver"
)

// The image is built and run by podman, as docker would. What the Dockerfile
// finds on the network, the image golang, is made here: this machine's Go.
func TestDockerfile(t *testing.T) {
	t.Parallel()
	driver.OnlyAll(t)
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
// a shell and mkdir. Go is mounted into it.
func baseImage(t *testing.T, dir string) string {
	t.Helper()
	files := []string{"/bin/sh", "/bin/mkdir"}
	for _, program := range files {
		libraries, err := exec.Command("ldd", program).Output()
		if err != nil {
			t.Logf("ldd: %v", err) // a static program
		}
		files = append(files, regexp.MustCompile(`/\S+`).FindAllString(string(libraries), -1)...)
	}
	for _, file := range files {
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
