//go:build unix

package handoff

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestMadeUpNameDoesNotLeadHere(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir, base := filepath.Split(self)
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(self, link); err != nil {
		t.Fatal(err)
	}
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Fatal(err)
	}
	path := "PATH=" + dir + string(filepath.ListSeparator) + filepath.Dir(sh)
	for name, want := range map[string]bool{
		self:            true,
		"./" + base:     true, // from the directory of the start
		base:            true, // by PATH
		link:            true,
		"-" + base:      false, // of a login shell
		"made up":       false,
		"./made-up":     false,
		"":              false,
		"sh":            false, // another program
		sh:              false,
		dir:             false,
		self + "/below": false,
	} {
		b := &birth{args: []string{name}, dir: dir, env: []string{path}}
		if got := b.leadsHere(); got != want {
			t.Errorf("%q: %v, want %v", name, got, want)
		}
	}
}

func TestEnvironmentOfTheStartIsRemembered(t *testing.T) {
	b := &birth{env: []string{"A=1=2", "EMPTY=", "AB=3", "none", "A=twice"}}
	for name, want := range map[string]string{"A": "1=2", "EMPTY": "", "AB": "3", "none": "", "B": ""} {
		if got := b.getenv(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	t.Setenv(envFDs, "3")
	if got := b.getenv(envFDs); got != "" {
		t.Errorf("%s is %q, which came later", envFDs, got)
	}
}

func TestAnnouncedDescriptorMustBeInherited(t *testing.T) {
	for value, want := range map[string]int{"": -1, "2": -1, "3": 3, "4": 4, "5": -1, "-1": -1, "x": -1, "99999999999999999999": -1} {
		t.Setenv(envControl, value)
		b := &birth{env: []string{envControl + "=" + value}, descriptors: 2}
		fd, err := b.announcedFD(envControl)
		if fd != want || (err == nil) != (want >= 0 || value == "") {
			t.Errorf("%q: descriptor %d, %v, want %d", value, fd, err, want)
		}
		if _, still := os.LookupEnv(envControl); still {
			t.Errorf("%q stays in the environment", value)
		}
	}
}

// Whatever the program starts before it uses the library must not take the sockets for
// its own.
func TestInheritedSocketsAreOursFromTheFirstMoment(t *testing.T) {
	if os.Getenv(envFDs) != "" { // the successor, which has not called Self
		fmt.Printf("pid=%d %s=%s %s=%s\n", os.Getpid(), envPID, os.Getenv(envPID), envFDs, os.Getenv(envFDs))
		return
	}
	peer, fd, err := controlPair()
	if err != nil {
		t.Fatal(err)
	}
	defer peer.close()
	theirs := os.NewFile(uintptr(fd), "control socket")
	defer theirs.Close()
	listener, err := listenTCP(t).File()
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	for what, test := range map[string]struct {
		files []*os.File
		env   []string
		own   bool
	}{
		"a predecessor's": {[]*os.File{listener, theirs}, []string{envControl + "=4"}, true},
		"a supervisor's":  {[]*os.File{listener, theirs}, []string{envSupervisor + "=4"}, true},
		"a stranger's":    {[]*os.File{listener}, nil, false},
		"another's":       {[]*os.File{listener, theirs}, []string{envSupervisor + "=4", envPID + "=1"}, false},
	} {
		cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
		cmd.Env = append(append(os.Environ(), envFDs+"=1"), test.env...)
		cmd.ExtraFiles = test.files
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if own := fmt.Sprintf("pid=%d %[2]s=%[1]d %[3]s=1", cmd.Process.Pid, envPID, envFDs); strings.Contains(string(out), own) != test.own {
			t.Errorf("%s sockets: the environment has\n%s\nits own number: want %v", what, out, test.own)
		}
	}
}
