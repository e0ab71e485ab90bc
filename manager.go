package grace

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/facebookgo/grace/internal/handoff"
	"github.com/facebookgo/grace/internal/systemd"
)

// What a process manager wants to know: states by sd_notify(3), if it has asked
// for them with NOTIFY_SOCKET, and the process id, in a file.

// notify tells the service manager, if there is one.
func (p *Process) notify(state string) {
	if err := handoff.Self().Notify(state); err != nil {
		p.logf("telling the service manager: %v", err)
	}
}

// notifyStatus tells the manager a state with a status that says whether this process
// serves. If not, onStatus says so no more: it may be late.
func (p *Process) notifyStatus(state string, serves bool) {
	p.statusMu.Lock()
	defer p.statusMu.Unlock()
	p.replaced = !serves
	p.notify(state)
}

// notifyServing says that this process is ready. A successor needs not: its
// predecessor does, which the manager trusts. One of facebookgo/grace does not
// know how.
func (p *Process) notifyServing() {
	g := handoff.Self()
	switch g.Origin() {
	case handoff.Succeeded:
		go func() {
			err := g.Adopted(func() bool {
				select {
				case <-g.PredecessorGone():
					p.becomeMain() // if it was not before, nobody else is
				default:
				}
				return p.isMain.Load()
			})
			if err != nil {
				p.logf("telling the service manager that it is the parent of pid %d now: %v", os.Getpid(), err)
			}
			if p.isMain.Load() {
				p.onStatus("", true)
			}
		}()
	case handoff.SucceededLegacy:
		p.becomeMain()
		p.notify(mainPID(os.Getpid()))
	default:
		p.becomeMain()
		p.notify("READY=1\nSTATUS=Serving with pid " + strconv.Itoa(os.Getpid()))
		p.storeListeners()
	}
}

// becomeMain is called when the service manager takes us for the main process.
func (p *Process) becomeMain() {
	p.mainOnce.Do(func() {
		p.isMain.Store(true)
		close(p.main)
	})
}

// notifyMain makes a successor the manager's main process, unless it is already.
// Its watchdog starts anew, so that the successor has time to take that over.
// If our own predecessor is just about to make us the main process, notifyMain
// waits for that: before, nobody would listen.
func (p *Process) notifyMain(s *handoff.Successor) {
	if !handoff.Self().Managed() {
		return
	}
	select {
	case <-p.main:
	case <-time.After(probation):
	}
	if p.isMain.Swap(false) {
		p.notify(mainPID(s.Pid))
		s.Status("", true)
	}
}

func mainPID(pid int) string {
	return fmt.Sprintf("MAINPID=%d\nREADY=1\nWATCHDOG=1\nSTATUS=Serving with pid %d", pid, pid)
}

// repeat tells the manager a state until done, while it takes us for the main
// process if mainOnly.
func (p *Process) repeat(state string, interval time.Duration, mainOnly bool, done <-chan struct{}) {
	if !handoff.Self().Managed() {
		return
	}
	t := time.NewTicker(interval)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			if !mainOnly || p.isMain.Load() {
				p.notify(state)
			}
		case <-done:
			return
		}
	}
}

// onStatus says in words how the predecessor's drain goes, which it cannot say
// itself when this is the main process.
func (p *Process) onStatus(text string, main bool) {
	if text != "" {
		text = "; " + text
	}
	if main {
		p.becomeMain()
		p.storeListeners()
	}
	p.statusMu.Lock()
	defer p.statusMu.Unlock()
	if p.replaced || !p.isMain.Load() {
		return // our own successor serves, or we stop
	}
	p.notify("STATUS=" + systemd.Escape(fmt.Sprintf("Serving with pid %d%s", os.Getpid(), text)))
}

func (p *Process) storeListeners() {
	if !p.StoreListeners {
		return
	}
	if err := handoff.Self().StoreListeners(); err != nil {
		p.logf("storing the listeners with the service manager: %v", err)
	}
}

// watchdog says that this process is alive, while it is the main process and
// until done, if the manager wants that.
func (p *Process) watchdog(done <-chan struct{}) {
	if interval := systemd.Watchdog(os.Getenv, os.Getpid()); interval > 0 {
		p.repeat("WATCHDOG=1", interval, true, done)
	}
}

// writePIDFile makes PIDFile name this process.
func (p *Process) writePIDFile() {
	if p.PIDFile == "" {
		return
	}
	if err := replaceFile(p.PIDFile, strconv.Itoa(os.Getpid())+"\n"); err != nil {
		p.logf("writing the PID file %s: %v; serving without it", p.PIDFile, err)
	}
}

// removePIDFile removes PIDFile if it still names this process.
func (p *Process) removePIDFile() {
	if p.PIDFile == "" {
		return
	}
	b, err := os.ReadFile(p.PIDFile)
	if err == nil && strings.TrimSpace(string(b)) == strconv.Itoa(os.Getpid()) {
		err = os.Remove(p.PIDFile)
	}
	if err != nil && !os.IsNotExist(err) {
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
