//go:build unix

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/facebookgo/grace/gracehttp"
	"github.com/facebookgo/grace/internal/testserver/driver"
)

var program string // the demo

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "gracedemo")
	if err != nil {
		panic(err)
	}
	program = filepath.Join(dir, "gracedemo")
	if err := driver.Build(program, "github.com/facebookgo/grace/gracedemo"); err != nil {
		panic(err)
	}
	code := driver.Run(m)
	os.RemoveAll(dir)
	os.Exit(code)
}

// A demo is one that serves.
type demo struct {
	*driver.Server
	t     *testing.T
	pid   int
	addrs []string // the three, and the control server's, if it has one
	link  driver.Link
	dir   string // where it was started
}

func startDemo(t *testing.T, args ...string) *demo {
	t.Helper()
	d := &demo{t: t, link: driver.NewLink(t, program), dir: t.TempDir()}
	args = append([]string{"-a0", "127.0.0.1:0", "-a1", "127.0.0.1:0", "-a2", "127.0.0.1:0"}, args...)
	d.Server = driver.Command{Path: string(d.link), Args: args, Dir: d.dir, Env: []string{"TMPDIR=" + d.dir}}.Start(t)
	d.pid = d.First().Pid
	d.addrs = strings.Split(d.Line(`Serving (.*) with pid`)[1], ", ")
	return d
}

// replace lets the next process be a shell script.
func (d *demo) replace(script string) {
	d.t.Helper()
	path := d.t.TempDir() + "/script"
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
		d.t.Fatal(err)
	}
	d.link.Move(d.t, path)
}

// run runs the demo as a command, in the directory of the one that serves.
func (d *demo) run(args ...string) (stdout, stderr string, status int) {
	d.t.Helper()
	var out, err bytes.Buffer
	cmd := exec.Command(program, args...)
	cmd.Dir, cmd.Env = d.dir, append(os.Environ(), "TMPDIR="+d.dir)
	cmd.Stdout, cmd.Stderr = &out, &err
	if e := cmd.Run(); e != nil && cmd.ProcessState == nil {
		d.t.Fatal(e)
	}
	return strings.TrimSpace(out.String()), err.String(), cmd.ProcessState.ExitCode()
}

// serves returns the process that answers on the first address.
func (d *demo) serves() int {
	d.t.Helper()
	resp, err := http.Get("http://" + d.addrs[0] + "/pid")
	if err != nil {
		d.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	pid, e := strconv.Atoi(strings.TrimSpace(string(body)))
	if err != nil || e != nil {
		d.t.Fatalf("/pid is answered %q, %v", body, err)
	}
	return pid
}

func TestExitStatusSaysHowTheRestartWent(t *testing.T) {
	t.Parallel()
	d := startDemo(t, "-control", "control")
	expect := func(what string, want int, wantErr string, args ...string) (stdout string) {
		t.Helper()
		stdout, stderr, status := d.run(append([]string{"-control", "control"}, args...)...)
		if status != want || !strings.Contains(stderr, wantErr) || (want == 0) != (stdout != "") {
			t.Errorf("%s: exit status %d, %q, %q; want %d, %q", what, status, stdout, stderr, want, wantErr)
		}
		return stdout
	}

	second := expect("a restart", 0, "", "-restart")
	if second != strconv.Itoa(d.serves()) || second == strconv.Itoa(d.pid) {
		t.Errorf("it printed %q; pid %d serves, before that pid %d", second, d.serves(), d.pid)
	}
	d.First().WaitExit(0)
	var status gracehttp.Status
	if err := json.Unmarshal([]byte(expect("status", 0, "", "-status")), &status); err != nil || strconv.Itoa(status.Pid) != second || status.Generation != 2 {
		t.Errorf("-status printed %+v, %v", status, err)
	}

	d.replace("exit 3")
	expect("a restart that fails", 1, "exit status 3", "-restart")
	d.replace("read line") // which never comes
	expect("one that takes long", 4, "deadline exceeded", "-restart", "-timeout", "200ms")
	expect("one more meanwhile", 3, "under way", "-restart")
	if pid := strconv.Itoa(d.serves()); pid != second {
		t.Errorf("pid %s serves, want %s", pid, second)
	}
	expect("a file that is not there", 2, "no such file", "-control", "nobody", "-restart")
	expect("a directory", 2, "", "-control", "/", "-status")
	expect("who is no control server", 2, "no control handler", "-control", d.addrs[0], "-restart")
}

// Main ports take no orders, whoever asks.
func TestMainPortsTakeNoOrders(t *testing.T) {
	t.Parallel()
	d := startDemo(t)
	for _, addr := range d.addrs {
		resp, err := http.Post("http://"+addr+"/restart", "", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusNotFound {
			t.Errorf("POST /restart at %s is answered %s", addr, resp.Status)
		}
	}
	if len(d.addrs) != 3 || d.serves() != d.pid {
		t.Errorf("it serves %q with pid %d", d.addrs, d.serves())
	}
}

func TestButtonIsForThePageAlone(t *testing.T) {
	t.Parallel()
	d := startDemo(t, "-button")
	post := func(site string) int {
		t.Helper()
		req, _ := http.NewRequest("POST", "http://"+d.addrs[0]+"/restart", nil)
		req.Header.Set("Sec-Fetch-Site", site)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	if code := post("cross-site"); code != http.StatusForbidden || d.serves() != d.pid {
		t.Errorf("another site's page: %d", code)
	}
	if code := post("same-origin"); code != http.StatusOK || d.serves() == d.pid {
		t.Errorf("the page: %d", code)
	}
}

func TestControlUnderstandsAllFormsOfAddress(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		serve string
		ask   []string
	}{
		{"control", []string{"control", "./control", "unix:control", "DIR/control", "unix:DIR/control"}},
		{"unix:DIR/control", []string{"control"}},
		{"127.0.0.1:PORT", []string{"127.0.0.1:PORT", ":PORT", "0.0.0.0:PORT", "localhost:PORT"}},
		{":PORT", []string{":PORT", "[::]:PORT", "127.0.0.1:PORT"}},
	} {
		t.Run(test.serve, func(t *testing.T) {
			t.Parallel()
			port := strconv.Itoa(freePort(t))
			dir := t.TempDir()
			fill := strings.NewReplacer("DIR", dir, "PORT", port).Replace
			if err := os.Symlink(dir, dir+"/DIR"); err != nil {
				t.Fatal(err)
			}
			d := &demo{t: t, dir: dir}
			d.Server = driver.Command{Path: program, Dir: dir, Args: []string{
				"-a0", "127.0.0.1:0", "-a1", "127.0.0.1:0", "-a2", "127.0.0.1:0", "-control", fill(test.serve)}}.Start(t)
			pid := d.First().Pid
			d.Line("Serving ")
			for _, ask := range test.ask {
				out, stderr, status := d.run("-control", fill(ask), "-status")
				if status != done || !strings.Contains(out, `"pid": `+strconv.Itoa(pid)) {
					t.Errorf("-control %s: exit status %d, %q %q", fill(ask), status, out, stderr)
				}
			}
			if _, stderr, status := d.run("-control", "systemd:control", "-status"); status != nobody || !strings.Contains(stderr, "only the service") {
				t.Errorf("-control systemd:control: exit status %d, %q", status, stderr)
			}
		})
	}
}

func freePort(t *testing.T) int {
	t.Helper()
	for range 1000 {
		port := 10_000 + rand.IntN(20_000) // below those that are given out for port 0
		if l, err := net.Listen("tcp", ":"+strconv.Itoa(port)); err == nil {
			l.Close()
			return port
		}
	}
	t.Fatal("no port is free")
	return 0
}

func TestDefaultControlIsThisUsersAlone(t *testing.T) {
	t.Parallel()
	port := strconv.Itoa(freePort(t))
	d := startDemo(t, "-a0", "127.0.0.1:"+port)
	dir := filepath.Join(d.dir, "gracedemo-"+strconv.Itoa(os.Geteuid()))
	path := filepath.Join(dir, port)
	mode := func(path string) os.FileMode {
		t.Helper()
		info, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		return info.Mode()
	}
	if d, f := mode(dir), mode(path); d != os.ModeDir|0o700 || f != os.ModeSocket|0o600 {
		t.Errorf("the directory's mode is %v, the socket's %v", d, f)
	}
	// By any form of the address that it serves.
	for _, address := range []string{":" + port, "localhost:" + port, "[::1]:" + port} {
		if out, stderr, status := d.run("-a0", address, "-status"); status != done {
			t.Errorf("-a0 %s -status: exit status %d, %q %q", address, status, out, stderr)
		}
	}
	// Whatever happened to it, a restart makes it so again.
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	if _, stderr, status := d.run("-a0", ":"+port, "-restart"); status != done {
		t.Fatalf("-restart: exit status %d, %q", status, stderr)
	}
	driver.Eventually(t, "the socket to have its mode again", func() bool { return mode(path) == os.ModeSocket|0o600 })
	// A directory that others could have put something into is nobody's.
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, stderr, status := d.run("-a0", ":"+port, "-status"); status != nobody || !strings.Contains(stderr, "this user's alone") {
		t.Errorf("with a directory for all: exit status %d, %q", status, stderr)
	}
}

func TestServesWithoutAControlSocket(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/file", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s := driver.Command{Path: program, Env: []string{"TMPDIR=" + dir + "/file"},
		Args: []string{"-a0", "127.0.0.1:" + strconv.Itoa(freePort(t)), "-a1", "127.0.0.1:0", "-a2", "127.0.0.1:0"}}.Start(t)
	s.Line("No control socket: .*not a directory")
	s.Line("Serving ")
}

func TestReadyUntilTheLameDuck(t *testing.T) {
	t.Parallel()
	d := startDemo(t, "-lame-duck", "1m")
	ready := func() int {
		t.Helper()
		resp, err := http.Get("http://" + d.addrs[0] + "/ready")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	if code := ready(); code != http.StatusOK {
		t.Errorf("while it serves, /ready is answered %d", code)
	}
	d.First().Signal(syscall.SIGTERM)
	driver.Eventually(t, "/ready to say no", func() bool { return ready() == http.StatusServiceUnavailable })
	if d.serves() != d.pid {
		t.Error("the lame duck does not serve")
	}
}

func TestHelpSaysWhatItIs(t *testing.T) {
	t.Parallel()
	out, err := exec.Command(program, "-h").CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	for _, want := range []string{"restart that nobody notices", "http://localhost:48567/", "-restart", "exit status is 0", "-lame-duck", "-control"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("-h does not say %q:\n%s", want, out)
		}
	}
}
