package main

import (
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
	"time"
)

func TestPictureShowsEachRequestOnce(t *testing.T) {
	of := func(lost int) *timeline {
		l := &timeline{name: "server: some way", oldPid: "1", first: 10 * time.Millisecond, gone: 20 * time.Millisecond}
		for i := range 300 {
			at := timelineFrom + time.Duration(i)*time.Millisecond
			m := mark{client: i % timelineClients, sample: sample{at, at + time.Duration(i)*time.Microsecond}, pid: "1"}
			switch {
			case i < lost:
				m.pid = ""
			case i%3 == 0:
				m.pid = "2"
			}
			l.marks = append(l.marks, m)
		}
		return l
	}
	picture := drawTimelines(of(0), of(17))
	paths := map[string][]string{} // by class
	for in := xml.NewDecoder(strings.NewReader(picture)); ; {
		token, err := in.Token()
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("no XML: %v", err)
		}
		if e, ok := token.(xml.StartElement); ok && e.Name.Local == "path" {
			attr := map[string]string{}
			for _, a := range e.Attr {
				attr[a.Name.Local] = a.Value
			}
			paths[attr["class"]] = append(paths[attr["class"]], attr["d"])
		}
	}
	// The first two of each class are the legends'.
	marks := func(class string, panel int) int {
		all := paths[class]
		return strings.Count(all[len(all)-2+panel], "M")
	}
	for panel, lost := range []int{0, 17} {
		if got := marks("lost", panel); got != lost {
			t.Errorf("panel %d: %d marks of lost requests, want %d", panel, got, lost)
		}
		byNew := 100 - (lost+2)/3
		for class, want := range map[string]int{"old": 300 - lost - byNew, "new": byNew} {
			for _, as := range []string{"lane ", "dot "} {
				if got := marks(as+class, panel); got != want {
					t.Errorf("panel %d: %d marks of class %s, want %d", panel, got, as+class, want)
				}
			}
		}
	}
	if !strings.Contains(picture, "17 of 300 requests lost") || !strings.Contains(picture, "0 of 300 requests lost") {
		t.Error("the picture does not say what was lost")
	}
}
