package main

import (
	"fmt"
	"runtime"
	"runtime/debug"
)

const modulePath = "github.com/seed-121bbccf/graceful/cmd/draincheck"

// version returns the version that was installed; of a checkout, the commit.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "(unknown)"
	}
	for _, m := range append(info.Deps, &info.Main) {
		if m.Path == modulePath && m.Version != "" && m.Version != "(devel)" {
			return m.Version
		}
	}
	commit, changed := "", ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			commit = s.Value[:min(12, len(s.Value))]
		case s.Key == "vcs.modified" && s.Value == "true":
			changed = "+"
		}
	}
	if commit == "" {
		return "(devel)"
	}
	return commit + changed
}

// versionLine is what -version prints.
func versionLine() string {
	return fmt.Sprintf("draincheck %s %s %s/%s", version(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
}
