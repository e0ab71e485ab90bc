package grace

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/facebookgo/grace/internal/handoff"
)

// writePIDFile makes PIDFile name this process. What is wrong with it is said once.
func (p *Process) writePIDFile() {
	if p.PIDFile == "" || p.pidFileFailed {
		return
	}
	if err := p.checkPIDFile(); err != nil {
		handoff.Self().Provide(pidFileState, func() []byte { return []byte("another's") })
		p.failPIDFile(err)
		return
	}
	p.replacePIDFile(os.Getpid())
}

// replacePIDFile makes PIDFile name a process.
func (p *Process) replacePIDFile(pid int) {
	if p.PIDFile == "" || p.pidFileFailed {
		return
	}
	if err := replaceFile(p.PIDFile, strconv.Itoa(pid)+"\n"); err != nil {
		p.failPIDFile(err)
	}
}

func (p *Process) failPIDFile(err error) {
	p.pidFileFailed = true
	p.logf("writing the PID file %s: %v; serving without it", p.PIDFile, err)
}

// pidFileState is the state that tells a successor that the file was another instance's.
const pidFileState = "PID file"

// checkPIDFile returns an error if the file is another instance's, that runs.
func (p *Process) checkPIDFile() error {
	g := handoff.Self()
	first := g.Origin == handoff.Fresh || g.Origin == handoff.Activated
	if g.State(pidFileState) == nil && (!first || g.Manager.Supervised()) {
		return nil // it may be a predecessor's
	}
	if other := p.pidInFile(); other != os.Getpid() && handoff.Runs(other) {
		return fmt.Errorf("it belongs to pid %d, which runs the same program", other)
	}
	return nil
}

// pidInFile returns what the file says, or 0.
func (p *Process) pidInFile() int {
	b, err := os.ReadFile(p.PIDFile)
	if err != nil {
		return 0
	}
	n, _ := strconv.Atoi(strings.TrimSpace(string(b)))
	return n
}

// removePIDFile removes PIDFile if it still names this process.
func (p *Process) removePIDFile() {
	if p.PIDFile == "" || p.pidInFile() != os.Getpid() {
		return
	}
	if err := os.Remove(p.PIDFile); err != nil && !os.IsNotExist(err) {
		p.logf("removing the PID file %s: %v", p.PIDFile, err)
	}
}

// replaceFile writes a file so that readers see the old content or the new.
func replaceFile(path, content string) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails once it is renamed
	_, err = f.WriteString(content)
	if err == nil {
		err = f.Chmod(0o644)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	return err
}
