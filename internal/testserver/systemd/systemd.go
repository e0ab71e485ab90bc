//go:build linux

// Package systemd runs the tests of a package under a real systemd, in a box of
// its own: see the script box.
//
//	func TestMain(m *testing.M) { os.Exit(systemd.Run(m, "github.com/facebookgo/grace/gracedemo")) }
//
//	func TestStart(t *testing.T) {
//		systemd.Need(t)
//		u := systemd.System.Install(t, "gracedemo.service", "", "")
//		u.Do("start")
//	}
//
// The test binary is started a second time, by that systemd, with the same
// flags. Where there can be no box, each test skips and says why.
package systemd

import (
	_ "embed"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/facebookgo/grace/internal/testserver/driver"
)

//go:embed box
var box []byte

const (
	// envInside is set in the box, to the directory that it shares with the
	// machine.
	envInside = "GRACE_SYSTEMD_BOX"
	// envLayer names a directory with a newer systemd, as the script newer
	// makes it.
	envLayer = "GRACE_SYSTEMD_LAYER"
)

// exitMissing is the script's exit status where there can be no box.
const exitMissing = 77

var missing = "systemd.Run was not called" // why there is no box

// Run runs the tests in the box and returns their exit status. The programs,
// by import path, are built before; Program finds them.
func Run(m *testing.M, programs ...string) int {
	flag.Parse()
	if testing.Short() {
		return m.Run()
	}
	if os.Getenv(envInside) != "" {
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "box")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	status, err := runBox(dir, programs)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if status == exitMissing {
		return m.Run()
	}
	return status
}

// Need skips the test if it is not in the box.
func Need(tb testing.TB) {
	tb.Helper()
	if testing.Short() {
		tb.Skip("a systemd of its own takes too long for -short")
	}
	if os.Getenv(envInside) == "" {
		tb.Skip(missing)
	}
}

// NeedVersion skips the test if it is not in the box, or systemd is older.
func NeedVersion(tb testing.TB, version int, what string) {
	tb.Helper()
	if is := Version(tb); is < version {
		tb.Skipf("systemd %d: no %s before version %d; %s can name a directory with a newer one", is, what, version, envLayer)
	}
}

// Version returns the box's version of systemd.
func Version(tb testing.TB) int {
	tb.Helper()
	Need(tb)
	out, err := exec.Command("systemctl", "--version").Output()
	var version int
	if err == nil {
		_, err = fmt.Sscanf(string(out), "systemd %d", &version) // "systemd 252 (252.38-1)"
	}
	if err != nil {
		tb.Fatalf("systemctl --version: %v: %q", err, out)
	}
	return version
}

// runBox puts into dir what the tests need, and runs them.
func runBox(dir string, programs []string) (status int, err error) {
	for _, pkg := range programs {
		if err := driver.Build(filepath.Join(dir, path.Base(pkg)), pkg, driver.RaceFlags()...); err != nil {
			return 0, err
		}
	}
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return 0, err
	}
	// The box may not have the directory of the package.
	if err := os.CopyFS(filepath.Join(dir, "package"), os.DirFS(".")); err != nil {
		return 0, err
	}
	var run strings.Builder
	// The tests wait more than they work.
	fmt.Fprintf(&run, "#!/bin/sh\ncd package && %s=%s %s=%s exec ../tests -test.parallel=12", envInside, quote(dir), driver.EnvTest, quote(os.Getenv(driver.EnvTest)))
	for _, arg := range os.Args[1:] {
		// What go test uses to know which files a test has read.
		if !strings.HasPrefix(arg, "-test.testlogfile=") {
			run.WriteString(" " + quote(arg))
		}
	}
	for name, content := range map[string][]byte{"tests": self, "box": box, "run": []byte(run.String() + "\n")} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o755); err != nil {
			return 0, err
		}
	}

	flags := []string{"-t", "570"} // before go test loses patience
	if layer := os.Getenv(envLayer); layer != "" {
		flags = append(flags, "-l", layer)
	}
	cmd := exec.Command(filepath.Join(dir, "box"), append(flags, dir)...)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &tee{os.Stdout, &out}, os.Stderr
	// It must not outlive us, whoever ends us.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	err = cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return 0, err
	}
	status = cmd.ProcessState.ExitCode()
	if status == exitMissing {
		missing = strings.TrimSpace(out.String())
	}
	return status, nil
}

// A tee writes to a file, and remembers the beginning.
type tee struct {
	to    *os.File
	begin *strings.Builder
}

func (t *tee) Write(b []byte) (int, error) {
	if t.begin.Len() < 1024 {
		t.begin.Write(b)
	}
	return t.to.Write(b)
}

func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// Program returns the path of a program that Run has built. Every user of the
// box can start it.
func Program(tb testing.TB, name string) string {
	tb.Helper()
	Need(tb)
	if err := install(); err != nil {
		tb.Fatal(err)
	}
	return filepath.Join(programs, name)
}

// programs is where the programs are: a service with PrivateTmp=yes does not see
// the directory that the box shares with the machine.
const programs = "/opt/programs"

var install = sync.OnceValue(func() error {
	dir := os.Getenv(envInside)
	entries, err := os.ReadDir(dir)
	if err == nil {
		err = os.MkdirAll(programs, 0o755)
	}
	for _, e := range entries {
		if err != nil {
			break
		}
		if info, ierr := e.Info(); ierr == nil && info.Mode().IsRegular() && info.Mode()&0o100 != 0 {
			var b []byte
			if b, err = os.ReadFile(filepath.Join(dir, e.Name())); err == nil {
				err = os.WriteFile(filepath.Join(programs, e.Name()), b, 0o755)
			}
		}
	}
	return err
})
