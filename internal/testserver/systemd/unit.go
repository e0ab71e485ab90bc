//go:build linux

package systemd

import (
	"bufio"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/facebookgo/grace/internal/testserver/driver"
)

// A Manager is a systemd.
type Manager struct {
	dir   string   // where an administrator puts units
	flags []string // for systemctl
	looker
}

// System is the one that is PID 1.
var System = &Manager{dir: "/etc/systemd/system"}

// User starts a user's systemd, of the user root. Where it is not, that
// is what Unit is for.
func User(tb testing.TB) (*Manager, *Unit) {
	tb.Helper()
	const dir, runtime = "/run/user-units", "/run/user-manager"
	u := System.Write(tb, "user-manager.service", `
[Service]
Type=notify
RuntimeDirectory=user-manager
Environment=XDG_RUNTIME_DIR=`+runtime+` HOME=/root SYSTEMD_UNIT_PATH=`+dir+`:
ExecStart=/usr/lib/systemd/systemd --user --unit=basic.target
Delegate=yes
`)
	u.Do("start")
	os.Setenv("XDG_RUNTIME_DIR", runtime) // systemctl finds it by that
	return &Manager{dir: dir, flags: []string{"--user"}}, u
}

// A Unit is one that a test has installed.
type Unit struct {
	Name  string
	m     *Manager
	tb    testing.TB
	since time.Time
}

// Install installs a unit file of the package's directory as it stands, under
// the name as, or its own if that is empty. Settings, if any, are those of a
// drop-in. The unit is stopped when the test ends.
func (m *Manager) Install(tb testing.TB, file, as, settings string) *Unit {
	tb.Helper()
	Need(tb)
	text, err := os.ReadFile(file)
	if err != nil {
		tb.Fatal(err)
	}
	if as == "" {
		as = file
	}
	if settings != "" {
		write(tb, filepath.Join(m.dir, as+".d", "test.conf"), settings)
	}
	return m.Write(tb, as, string(text))
}

// Write installs a unit of the test's own.
func (m *Manager) Write(tb testing.TB, name, text string) *Unit {
	tb.Helper()
	Need(tb)
	path := filepath.Join(m.dir, name)
	if _, err := os.Stat(path); err == nil {
		tb.Fatalf("%s is there already", path)
	}
	write(tb, path, text)
	u := &Unit{Name: name, m: m, tb: tb, since: time.Now()}
	tb.Cleanup(u.remove)
	return u
}

func write(tb testing.TB, path, text string) {
	tb.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		tb.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		tb.Fatal(err)
	}
}

func (u *Unit) remove() {
	if u.tb.Failed() {
		status, _ := u.m.command("--full", "--lines=0", "status", u.Name).CombinedOutput()
		u.tb.Logf("%s\n%s", status, u.Journal())
	}
	// No test waits for what is left of another. A service without a control group is over.
	_, err := os.Stat("/sys/fs/cgroup/system.slice/" + u.Name)
	if err == nil || u.m != System || !strings.HasSuffix(u.Name, ".service") || strings.Contains(u.Name, "@") {
		u.m.command("kill", "--signal=KILL", u.Name).Run()
		u.m.command("stop", u.Name).Run()
		u.m.command("reset-failed", u.Name).Run()
	}
	os.Remove(filepath.Join(u.m.dir, u.Name))
	os.RemoveAll(filepath.Join(u.m.dir, u.Name+".d"))
}

func (m *Manager) command(args ...string) *exec.Cmd {
	return exec.Command("systemctl", slices.Concat(m.flags, []string{"--no-pager"}, args)...)
}

// Systemctl runs systemctl for the unit and returns what it prints.
func (u *Unit) Systemctl(args ...string) string {
	u.tb.Helper()
	args = append(args, u.Name)
	out, err := u.m.command(args...).CombinedOutput()
	if err != nil {
		u.tb.Fatalf("systemctl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// Do has systemctl do something with the unit, and waits until it is done.
func (u *Unit) Do(verb string) {
	u.tb.Helper()
	u.Systemctl(verb)
}

// Try is Do for what may fail.
func (u *Unit) Try(verb string) error {
	return u.m.command(verb, u.Name).Run()
}

// Kill sends a signal to the unit's main process.
func (u *Unit) Kill(signal string) {
	u.tb.Helper()
	u.Systemctl("kill", "--kill-whom=main", "--signal="+signal)
}

// Get returns a property of the unit.
func (u *Unit) Get(property string) string {
	u.tb.Helper()
	return u.Systemctl("show", "--value", "--property="+property)
}

// MainPID returns what systemd takes for the main process.
func (u *Unit) MainPID() int {
	u.tb.Helper()
	pid, err := strconv.Atoi(u.Get("MainPID"))
	if err != nil {
		u.tb.Fatal(err)
	}
	return pid
}

// Await waits until a property matches the pattern, and returns it.
func (u *Unit) Await(property, pattern string) string {
	u.tb.Helper()
	expr := regexp.MustCompile("^(?:" + pattern + ")$")
	return u.await(property, fmt.Sprintf("%q", pattern), expr.MatchString)
}

// AwaitAnotherMain waits until there is a main process that is none of these.
func (u *Unit) AwaitAnotherMain(than ...int) {
	u.tb.Helper()
	u.await("MainPID", fmt.Sprintf("another than %d", than), func(is string) bool {
		pid, err := strconv.Atoi(is)
		return err == nil && pid != 0 && !slices.Contains(than, pid)
	})
}

func (u *Unit) await(property, what string, done func(is string) bool) (is string) {
	u.tb.Helper()
	u.m.add(u.Name, property, 1)
	defer u.m.add(u.Name, property, -1)
	if !ticks(func(tick time.Time) bool {
		is = u.m.look(u.tb, tick)[u.Name][property]
		return done(is)
	}) {
		u.tb.Fatalf("waited %v for %s of %s to be %s: it is %q", driver.Patience, property, u.Name, what, is)
	}
	return is
}

// AwaitStatus waits until systemctl status shows all of it.
func (u *Unit) AwaitStatus(want ...string) {
	u.tb.Helper()
	var status string
	if !ticks(func(time.Time) bool {
		status = u.Systemctl("status")
		return !slices.ContainsFunc(want, func(s string) bool { return !strings.Contains(status, s) })
	}) {
		u.tb.Fatalf("waited %v for systemctl status to show %q: it shows %s", driver.Patience, want, status)
	}
}

// ticks looks at each tenth of a second until it is so, and reports whether it became so:
// a look is a process of its own, which others may need the processor for.
func ticks(is func(tick time.Time) bool) bool {
	const each = 100 * time.Millisecond
	for deadline := time.Now().Add(driver.Patience); time.Now().Before(deadline); {
		tick := time.Now().Truncate(each).Add(each)
		time.Sleep(time.Until(tick))
		if is(tick) {
			return true
		}
	}
	return false
}

// A looker asks once for all who wait at a tick.
type looker struct {
	mu     sync.Mutex
	waits  map[[2]string]int // for a property of a unit
	looked time.Time         // when it began
	seen   map[string]map[string]string
}

// add enters, or removes, one who waits.
func (l *looker) add(unit, property string, n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.waits == nil {
		l.waits = map[[2]string]int{}
	}
	key := [2]string{unit, property}
	if l.waits[key] += n; l.waits[key] == 0 {
		delete(l.waits, key)
	}
}

// look returns the properties of units that somebody waits for, as they were at the tick
// or later.
func (m *Manager) look(tb testing.TB, tick time.Time) map[string]map[string]string {
	tb.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.looked.Before(tick) {
		return m.seen
	}
	units, properties := map[string]bool{}, map[string]bool{"Id": true}
	for key := range m.waits {
		units[key[0]], properties[key[1]] = true, true
	}
	args := append([]string{"show", "--property=" + strings.Join(slices.Collect(maps.Keys(properties)), ",")}, slices.Collect(maps.Keys(units))...)
	began := time.Now()
	out, err := m.command(args...).CombinedOutput()
	if err != nil {
		tb.Fatalf("systemctl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	seen := map[string]map[string]string{}
	for _, block := range strings.Split(string(out), "\n\n") {
		unit := map[string]string{}
		for _, line := range strings.Split(block, "\n") {
			name, value, _ := strings.Cut(line, "=")
			unit[name] = strings.TrimSpace(value)
		}
		seen[unit["Id"]] = unit
	}
	m.looked, m.seen = began, seen
	return seen
}

// Journal returns what the unit has logged since it was installed, and systemd
// about it.
func (u *Unit) Journal() string {
	exec.Command("journalctl", "--sync").Run()
	out, err := u.journalctl().CombinedOutput()
	if err != nil {
		u.tb.Errorf("journalctl: %v", err)
	}
	return strings.TrimSpace(string(out))
}

// AwaitLog waits until a line with this text is among it.
func (u *Unit) AwaitLog(text string) {
	u.tb.Helper()
	cmd := u.journalctl("--follow", "--lines=all")
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		u.tb.Fatalf("journalctl: %v", err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	timeout := time.AfterFunc(driver.Patience, func() { cmd.Process.Kill() })
	defer timeout.Stop()
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if strings.Contains(lines.Text(), text) {
			return
		}
	}
	if timeout.Stop() {
		u.tb.Fatal("journalctl --follow has ended by itself")
	}
	u.tb.Fatalf("%s has not logged %q within %v", u.Name, text, driver.Patience)
}

func (u *Unit) journalctl(flags ...string) *exec.Cmd {
	// journald takes a user's services in the box for that manager's own lines.
	return exec.Command("journalctl", slices.Concat(flags, []string{"--no-pager", "--quiet", "--output=short-precise",
		fmt.Sprintf("--since=@%d.%06d", u.since.Unix(), u.since.Nanosecond()/1000),
		"UNIT=" + u.Name, "+", "_SYSTEMD_UNIT=" + u.Name, "+", "USER_UNIT=" + u.Name})...)
}
