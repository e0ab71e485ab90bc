//go:build unix

package driver

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// A Terminal is one in which a person could sit.
type Terminal struct {
	tb     testing.TB
	socket string
}

// StartTerminal starts a terminal with this command in it, bash if there is
// none; it skips the test where there is no tmux. The terminal is closed when
// the test ends, and a shell in it has ended then.
func StartTerminal(tb testing.TB, command ...string) *Terminal {
	tb.Helper()
	if _, err := exec.LookPath("tmux"); err != nil {
		tb.Skip("no tmux here: ", err)
	}
	// Not tb.TempDir(), whose path may be too long for a socket.
	dir, err := os.MkdirTemp("", "tmux")
	if err != nil {
		tb.Fatal(err)
	}
	t := &Terminal{tb: tb, socket: dir + "/socket"}
	tb.Cleanup(func() {
		if tb.Failed() {
			tb.Logf("the terminal shows:\n%s", t.Screen())
		}
		t.Close()
		os.RemoveAll(dir)
	})
	if command == nil {
		command = []string{"env", "PS1=$ ", "bash", "--norc", "--noprofile", "-i"}
	}
	t.tmux(append([]string{"-f", "/dev/null", "new-session", "-d", "-x", "200", "-y", "50"}, command...)...)
	return t
}

// tmux runs a command of tmux, and returns what it prints.
func (t *Terminal) tmux(args ...string) string {
	t.tb.Helper()
	out, err := exec.Command("tmux", append([]string{"-S", t.socket}, args...)...).CombinedOutput()
	if err != nil {
		t.tb.Fatalf("tmux %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// Type types a line.
func (t *Terminal) Type(line string) {
	t.tb.Helper()
	t.tmux("send-keys", "-l", line)
	t.Press("Enter")
}

// Press presses a key, as tmux calls it.
func (t *Terminal) Press(key string) {
	t.tb.Helper()
	t.tmux("send-keys", key)
}

// Screen returns what the terminal shows.
func (t *Terminal) Screen() string {
	out, _ := exec.Command("tmux", "-S", t.socket, "capture-pane", "-p").Output()
	return strings.TrimSpace(string(out))
}

// See waits until the terminal shows a text.
func (t *Terminal) See(text string) {
	t.tb.Helper()
	Eventually(t.tb, fmt.Sprintf("the terminal to show %q", text), func() bool { return strings.Contains(t.Screen(), text) })
}

// Close closes the terminal, as who clicks its window away.
func (t *Terminal) Close() {
	exec.Command("tmux", "-S", t.socket, "kill-server").Run()
}
