// Package reach finds the system calls that the program can make in a part of its life, from its
// source.
//
// It is for the test that compares the tables of package sandbox with the code: a call that is made
// only in trouble is found without having to get into that trouble.
//
// # How
//
// The whole program, Go's library included, is loaded in SSA form, and a call graph is made of it
// (variable type analysis, which follows function values and interfaces). The part of the life is
// what comes after a call: in the function that makes it, all that its control flow leads to from
// there; in each caller of that function, likewise, up to main; what is deferred in these; and
// every goroutine, timer and finalizer that anything may have started before. What these reach is
// what can run.
//
// A system call is a call of one of a few functions of packages syscall, unix and runtime that have
// no body in Go. Where its number or arguments are parameters of the function that makes it, its
// callers are asked, and theirs, until there are constants. What cannot be told can be anything.
//
// # Limits
//
// Reflection and functions in assembly are not followed. Both are rare here: beside Go's
// library, only package restart has assembly, and those functions that make system calls are known
// by name.
// An unknown one of a package that makes system calls is an error.
//
// Go's runtime is not followed. It calls what it likes at any time: see Runtime.
package reach

import (
	"fmt"
	"go/constant"
	"go/token"
	"go/types"
	"os"
	"slices"
	"strings"

	"golang.org/x/tools/go/callgraph"
	"golang.org/x/tools/go/callgraph/vta"
	"golang.org/x/tools/go/packages"
	"golang.org/x/tools/go/ssa"
	"golang.org/x/tools/go/ssa/ssautil"
)

// Program is the program, for an architecture.
type Program struct {
	GOARCH string

	prog    *ssa.Program
	graph   *callgraph.Graph
	byName  map[string]*ssa.Function
	stores  map[*ssa.Global][]*ssa.Store
	globals map[*ssa.Global]bool // whose address is taken for more than loads and stores
	// go:linkname, where there is no body: from a name to that of the body
	links  map[string]string
	pushed map[string]string // go:linkname, where the body is: the same
	closes map[*ssa.Function][]*ssa.MakeClosure
	edges  map[ssa.CallInstruction][]*ssa.Function // of graph
	tells  map[*ssa.Parameter]bool                 // what told has found
	// what functions are stored to a field, if that is known
	fields map[field][]*ssa.Function
	dead   []string // packages, each with a "/" behind
}

// Call is a system call that can be made.
type Call struct {
	Nr   uint32
	Args [6]Values
	Path []string // functions that lead to it
}

// Values are the low halves of the values that an argument can have; nil: it can have any.
type Values []uint32

// Phase is a part of the life of a process of some kind.
type Phase struct {
	// After is the function whose return begins it.
	After string
	// Without are functions, packages with a "/" behind, and calls ("A > B": of B by A) that such a
	// process never makes, or not then.
	Without []string
}

// Load reads the package path, a main package, for an architecture. The packages dead, and those
// below them, are linked, but nothing in them is called.
func Load(path, goarch string, dead ...string) (*Program, error) {
	pkgs, err := packages.Load(&packages.Config{
		Mode:       packages.LoadAllSyntax,
		Env:        append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+goarch),
		BuildFlags: []string{"-tags=urfave_cli_no_docs"}, // as the program is built
	}, path)
	if err != nil {
		return nil, err
	}
	p := &Program{
		GOARCH: goarch, byName: make(map[string]*ssa.Function), links: make(map[string]string), pushed: make(map[string]string),
		stores: make(map[*ssa.Global][]*ssa.Store), globals: make(map[*ssa.Global]bool),
		closes: make(map[*ssa.Function][]*ssa.MakeClosure),
		edges:  make(map[ssa.CallInstruction][]*ssa.Function), tells: make(map[*ssa.Parameter]bool),
		fields: make(map[field][]*ssa.Function),
	}
	packages.Visit(pkgs, nil, func(pkg *packages.Package) {
		for _, e := range pkg.Errors {
			err = e
		}
		p.readLinks(pkg)
	})
	if err != nil {
		return nil, err
	}
	p.prog, _ = ssautil.AllPackages(pkgs, ssa.InstantiateGenerics)
	p.prog.Build()
	all := ssautil.AllFunctions(p.prog)
	for f := range all {
		p.byName[f.String()] = f
		p.scan(f)
	}
	p.scanFields(all)
	for local, target := range p.links {
		if f := p.byName[local]; f != nil && len(f.Blocks) > 0 {
			p.pushed[target] = local
		}
	}
	p.follow(vta.CallGraph(all, nil))
	// Once more, with what is called at all: what others do with interfaces does not count then.
	w := &walk{p: p, why: make(map[*ssa.Function]*ssa.Function)}
	for _, d := range dead {
		p.dead = append(p.dead, d+"/")
	}
	p.wake(w)
	w.run()
	if w.err != nil {
		return nil, w.err
	}
	live := make(map[*ssa.Function]bool)
	for f := range all {
		if _, ok := w.why[f]; ok || isRuntime(pkgOf(f)) {
			live[f] = true
		}
	}
	p.follow(vta.CallGraph(live, p.graph))
	return p, nil
}

// follow makes g the graph.
func (p *Program) follow(g *callgraph.Graph) {
	p.graph = g
	clear(p.edges)
	clear(p.tells)
	for _, n := range g.Nodes {
		for _, e := range n.Out {
			if e.Site != nil {
				p.edges[e.Site] = append(p.edges[e.Site], e.Callee.Func)
			}
		}
	}
}

// wake adds to w where a process begins, and returns main.
func (p *Program) wake(w *walk) (main *ssa.Function) {
	for _, pkg := range p.prog.AllPackages() {
		w.add(pkg.Func("init"), nil)
		if pkg.Pkg.Name() == "main" {
			main = pkg.Func("main")
			w.add(main, nil)
		}
	}
	return main
}

// readLinks notes which functions without a body have one in another package.
func (p *Program) readLinks(pkg *packages.Package) {
	for _, file := range pkg.Syntax {
		for _, group := range file.Comments {
			for _, c := range group.List {
				f := strings.Fields(c.Text)
				if len(f) == 3 && f[0] == "//go:linkname" {
					p.links[pkg.PkgPath+"."+f[1]] = f[2]
				}
			}
		}
	}
}

// scan notes what f does that is looked for later.
func (p *Program) scan(f *ssa.Function) {
	for _, b := range f.Blocks {
		for _, in := range b.Instrs {
			if m, ok := in.(*ssa.MakeClosure); ok {
				p.closes[m.Fn.(*ssa.Function)] = append(p.closes[m.Fn.(*ssa.Function)], m)
			}
			for _, op := range in.Operands(nil) {
				g, ok := (*op).(*ssa.Global)
				if !ok {
					continue
				}
				switch in := in.(type) {
				case *ssa.Store:
					if in.Addr == g {
						p.stores[g] = append(p.stores[g], in)
						continue
					}
				case *ssa.UnOp:
					continue
				}
				p.globals[g] = true
			}
		}
	}
}

// site is a call in a function; what is only started there is one, too.
type site struct {
	in   *ssa.Function
	call ssa.CallInstruction
}

// After returns the system calls that can be made in a phase, and what could not be followed.
func (p *Program) After(ph Phase) ([]Call, error) {
	marker := p.byName[ph.After]
	if marker == nil {
		return nil, fmt.Errorf("there is no function %s", ph.After)
	}
	w := &walk{p: p, why: make(map[*ssa.Function]*ssa.Function), sites: make(map[ssa.CallInstruction]bool)}
	for _, name := range ph.Without {
		name, _, _ := strings.Cut(name, " > ")
		if p.byName[name] == nil && !strings.HasSuffix(name, "/") {
			return nil, fmt.Errorf("there is no function %s", name)
		}
	}
	w.without = ph.Without

	// All of the process's life, for what it may have started.
	life := &walk{p: p, why: make(map[*ssa.Function]*ssa.Function), without: ph.Without}
	main := p.wake(life)
	life.run()
	if life.err != nil {
		return nil, life.err
	}
	if _, ok := life.why[marker]; !ok || main == nil {
		return nil, fmt.Errorf("nothing calls %s", ph.After)
	}
	for f := range life.why {
		if err := w.started(f); err != nil {
			return nil, err
		}
	}
	w.after(marker, life)
	w.run()
	if w.err != nil {
		return nil, w.err
	}
	return w.calls()
}

// walk is what is reached from some functions. Its fields are for one goroutine.
type walk struct {
	p       *Program
	without []string
	why     map[*ssa.Function]*ssa.Function // what was reached, and from where
	sites   map[ssa.CallInstruction]bool    // reached in functions that are not reached as a whole
	todo    []*ssa.Function
	err     error
}

func (w *walk) add(f, from *ssa.Function) {
	if f == nil {
		return
	}
	if _, ok := w.why[f]; ok || w.skips(f) {
		return
	}
	w.why[f] = from
	w.todo = append(w.todo, f)
}

func (w *walk) skips(f *ssa.Function) bool {
	name, pkg := f.String(), pkgOf(f)
	if slices.Contains(w.without, name) || slices.Contains(w.without, pkg+"/") {
		return true
	}
	for _, d := range w.p.dead {
		if strings.HasPrefix(pkg+"/", d) {
			return true
		}
	}
	return isRuntime(pkg) // see Runtime
}

func (w *walk) run() {
	for len(w.todo) > 0 {
		f := w.todo[0]
		w.todo = w.todo[1:]
		if _, ok := w.p.leaf(f); ok {
			continue
		}
		if len(f.Blocks) == 0 {
			w.bodyless(f)
			continue
		}
		for _, b := range f.Blocks {
			for _, in := range b.Instrs {
				if call, ok := in.(ssa.CallInstruction); ok {
					w.callees(f, call)
				}
			}
		}
	}
}

// bodyless follows f to where its body is.
func (w *walk) bodyless(f *ssa.Function) {
	pkg := pkgOf(f)
	for name, hops := pkg+"."+f.Name(), 0; hops < 3; hops++ {
		target := w.p.links[name]
		if target == "" {
			target = w.p.pushed[name]
		}
		if isRuntime(target[:max(strings.LastIndex(target, "."), 0)]) {
			return
		}
		if g := w.p.byName[target]; g != nil && len(g.Blocks) > 0 {
			w.add(g, f)
			return
		}
		name = target
	}
	for _, maker := range []string{"syscall", "golang.org/x/sys/unix", "internal/syscall/", "os", "internal/poll", "fusilli"} {
		if (pkg == maker || strings.HasSuffix(maker, "/") && strings.HasPrefix(pkg, maker) || maker == "fusilli" && strings.HasPrefix(pkg, "fusilli/")) &&
			!slices.Contains(harmless, f.String()) {
			w.err = fmt.Errorf("%s has no body, and may make a system call: it is to be known here (%s)", f, strings.Join(w.path(f), " < "))
		}
	}
}

// started adds what f starts that goes on without it.
func (w *walk) started(f *ssa.Function) error {
	for _, b := range f.Blocks {
		for _, in := range b.Instrs {
			switch in := in.(type) {
			case *ssa.Go:
				if !slices.Contains(relays, f.String()) || w.p.functions(in.Call.Value) != nil {
					w.callees(f, in)
				}
			case ssa.CallInstruction:
				to := in.Common().StaticCallee()
				if to == nil || !slices.Contains(starters, to.String()) {
					continue
				}
				known := false
				for _, arg := range in.Common().Args {
					for _, g := range w.p.functions(arg) {
						w.add(g, f)
						known = true
					}
				}
				if !known && !slices.Contains(starters, f.String()) && !strings.HasPrefix(to.String(), "runtime.") {
					return fmt.Errorf("%s starts something by %s that cannot be told", f, to)
				}
			}
		}
	}
	return nil
}

// functions are the functions that v can be: those that are written where it is used or, if v is a
// field that only such are stored to, all of these.
func (p *Program) functions(v ssa.Value) []*ssa.Function {
	switch v := v.(type) {
	case *ssa.Function:
		return []*ssa.Function{v}
	case *ssa.MakeClosure:
		return []*ssa.Function{v.Fn.(*ssa.Function)}
	case *ssa.ChangeType:
		return p.functions(v.X)
	case *ssa.MakeInterface:
		return p.functions(v.X)
	case *ssa.UnOp:
		if f, ok := v.X.(*ssa.FieldAddr); ok && v.Op == token.MUL {
			return p.fields[fieldOf(f)]
		}
	}
	return nil
}

// field is a field of a struct type.
type field struct {
	of    types.Type
	index int
}

func fieldOf(f *ssa.FieldAddr) field {
	return field{types.Unalias(f.X.Type().Underlying().(*types.Pointer).Elem()), f.Field}
}

// scanFields finds the fields that only functions which are written there are stored to.
func (p *Program) scanFields(all map[*ssa.Function]bool) {
	vague := make(map[field]bool)
	for f := range all {
		for _, b := range f.Blocks {
			for _, in := range b.Instrs {
				store, ok := in.(*ssa.Store)
				if !ok {
					continue
				}
				if _, ok := store.Val.Type().Underlying().(*types.Signature); !ok {
					continue
				}
				addr, ok := store.Addr.(*ssa.FieldAddr)
				if !ok {
					continue
				}
				k := fieldOf(addr)
				switch v := store.Val.(type) {
				case *ssa.Function:
					p.fields[k] = append(p.fields[k], v)
				case *ssa.MakeClosure:
					p.fields[k] = append(p.fields[k], v.Fn.(*ssa.Function))
				case *ssa.Const: // nil
				default:
					vague[k] = true
				}
			}
		}
	}
	for k := range vague {
		delete(p.fields, k)
	}
}

// callees adds what a call in f can reach. A function that is an argument of a call is called by
// it: that tells more than to follow the parameter, which stands for the arguments of all calls.
func (w *walk) callees(f *ssa.Function, call ssa.CallInstruction) { w.follow(f, call, false) }

// follow is callees. With blind, the call whose argument a parameter is was made before.
func (w *walk) follow(f *ssa.Function, call ssa.CallInstruction, blind bool) {
	c := call.Common()
	if to := c.StaticCallee(); to != nil && !isRuntime(pkgOf(to)) && w.skips(to) {
		return
	}
	for _, arg := range c.Args {
		for _, g := range w.p.functions(arg) {
			w.add(g, f)
		}
	}
	if v, is := c.Value.(*ssa.Parameter); is && !c.IsInvoke() && !blind && w.p.told(v) {
		return
	}
	if c.StaticCallee() == nil && !c.IsInvoke() && slices.Contains(relays, f.String()) && w.p.functions(c.Value) == nil {
		return
	}
	if g := w.p.once(c.Value); g != nil {
		w.add(g, f)
		return
	}
	for _, callee := range w.p.edges[call] {
		if !w.cuts(f, callee) {
			w.add(callee, f)
		}
	}
}

// cuts reports whether f does not call callee.
func (w *walk) cuts(f, callee *ssa.Function) bool {
	return slices.Contains(w.without, f.String()+" > "+callee.String())
}

// relays are functions that call what was an argument of another, which hands it to them by a
// channel or a field: the call of that one tells.
var relays = []string{
	"(*fusilli/internal/process.Thread).run", // Thread.Do
	"(*sync.WaitGroup).Go$1",
	"(*context.afterFuncCtx).cancel$1",
}

// told reports whether all arguments for v, a function, are seen where they are passed.
func (p *Program) told(v *ssa.Parameter) bool {
	if known, ok := p.tells[v]; ok {
		return known
	}
	p.tells[v] = true // for functions that call themselves
	f := v.Parent()
	i := slices.Index(f.Params, v)
	for _, e := range p.graph.Nodes[f].In {
		if e.Site == nil {
			continue
		}
		c, j := e.Site.Common(), i
		if c.IsInvoke() {
			j--
		}
		if j < 0 || j >= len(c.Args) {
			continue
		}
		arg := c.Args[j]
		if k, is := arg.(*ssa.Const); is && k.IsNil() || len(p.functions(arg)) > 0 {
			continue
		}
		if up, is := arg.(*ssa.Parameter); is && p.told(up) {
			continue
		}
		p.tells[v] = false
		break
	}
	return p.tells[v]
}

// once is the function that a variable of a package calls the first time it is called, if it was
// made by sync.OnceValue or one like it.
func (p *Program) once(v ssa.Value) *ssa.Function {
	load, ok := v.(*ssa.UnOp)
	if !ok {
		return nil
	}
	g, ok := load.X.(*ssa.Global)
	if !ok || p.globals[g] || len(p.stores[g]) != 1 {
		return nil
	}
	made, ok := p.stores[g][0].Val.(*ssa.Call)
	if !ok || made.Call.StaticCallee() == nil {
		return nil
	}
	maker := made.Call.StaticCallee()
	if maker.Origin() != nil {
		maker = maker.Origin()
	}
	if maker.Pkg == nil || maker.Pkg.Pkg.Path() != "sync" || !strings.HasPrefix(maker.Name(), "Once") {
		return nil
	}
	for _, f := range p.functions(made.Call.Args[0]) {
		return f
	}
	return nil
}

// after adds what comes after marker has returned, in its callers and theirs.
func (w *walk) after(marker *ssa.Function, life *walk) {
	above := map[*ssa.Function]bool{marker: true}
	todo := []*ssa.Function{marker}
	for len(todo) > 0 {
		f := todo[0]
		todo = todo[1:]
		for _, e := range w.p.graph.Nodes[f].In {
			caller := e.Caller.Func
			if _, alive := life.why[caller]; !alive || e.Site == nil {
				continue
			}
			for _, call := range following(e.Site) {
				w.sites[call] = true
				w.follow(caller, call, true)
			}
			if !above[caller] {
				above[caller] = true
				todo = append(todo, caller)
			}
		}
	}
}

// following are the calls that can be made after one, and those that its function has deferred.
func following(call ssa.CallInstruction) []ssa.CallInstruction {
	var list []ssa.CallInstruction
	take := func(instrs []ssa.Instruction) {
		for _, in := range instrs {
			if c, ok := in.(ssa.CallInstruction); ok {
				list = append(list, c)
			}
		}
	}
	b := call.Block()
	take(b.Instrs[slices.Index(b.Instrs, ssa.Instruction(call))+1:])
	seen := make(map[*ssa.BasicBlock]bool)
	todo := slices.Clone(b.Succs)
	for len(todo) > 0 {
		next := todo[0]
		todo = todo[1:]
		if seen[next] {
			continue
		}
		seen[next] = true
		take(next.Instrs)
		todo = append(todo, next.Succs...)
	}
	for _, b := range call.Parent().Blocks {
		for _, in := range b.Instrs {
			if d, ok := in.(*ssa.Defer); ok {
				list = append(list, d)
			}
		}
	}
	return list
}

func (w *walk) reached(s site) bool {
	_, ok := w.why[s.in]
	return ok || w.sites[s.call]
}

func (w *walk) path(f *ssa.Function) []string {
	var names []string
	for ; f != nil && len(names) < 40; f = w.why[f] {
		names = append(names, f.String())
	}
	return names
}

// calls are the system calls of what was reached.
func (w *walk) calls() ([]Call, error) {
	var list []Call
	seen := make(map[string]bool)
	for f, n := range w.p.graph.Nodes {
		l, ok := w.p.leaf(f)
		if !ok || f == nil {
			continue
		}
		for _, e := range n.In {
			if _, wraps := w.p.leaf(e.Caller.Func); wraps || e.Site == nil || isRuntime(pkgOf(e.Caller.Func)) {
				continue
			}
			if err := w.ask(l, []site{{e.Caller.Func, e.Site}}, &list, seen); err != nil {
				return nil, err
			}
		}
	}
	return list, nil
}

const maxChain = 10

// ask adds the call that chain makes: its first site calls the function l, and each is in the
// function that the next calls.
func (w *walk) ask(l leafCall, chain []site, list *[]Call, seen map[string]bool) error {
	last := chain[len(chain)-1]
	if w.skips(last.in) || !w.reached(last) || len(chain) > 1 && w.cuts(last.in, chain[len(chain)-2].in) {
		return nil
	}
	r := resolver{p: w.p, chain: chain}
	args := chain[0].call.Common().Args
	numbers := Values{l.nr}
	if l.nr == 0 {
		numbers = r.value(args[0], 0)
		args = args[1:]
	}
	var c Call
	for i := range min(len(args), 6) {
		c.Args[i] = r.value(args[i], 0)
	}
	if r.deeper && len(chain) < maxChain {
		callers := 0
		for _, e := range w.p.graph.Nodes[last.in].In {
			if e.Site == nil || slices.ContainsFunc(chain, func(s site) bool { return s.in == e.Caller.Func }) {
				continue
			}
			callers++
			if err := w.ask(l, append(slices.Clip(chain), site{e.Caller.Func, e.Site}), list, seen); err != nil {
				return err
			}
		}
		if callers > 0 {
			return nil
		}
	}
	if numbers == nil {
		return fmt.Errorf("which system call does %s make?", strings.Join(w.path(last.in), " < "))
	}
	for _, nr := range numbers {
		c.Nr = nr
		if key := fmt.Sprint(nr, c.Args, last.in); !seen[key] {
			seen[key] = true
			c.Path = nil
			for _, s := range chain[:len(chain)-1] {
				c.Path = append(c.Path, s.in.String())
			}
			c.Path = append(c.Path, w.path(last.in)...)
			*list = append(*list, c)
		}
	}
	return nil
}

// resolver finds the values that arguments have at the end of a chain of calls.
type resolver struct {
	p      *Program
	chain  []site
	deeper bool // a caller of the last function may tell more
}

const maxValues = 64

// value is what v, in the function of chain[depth], can be.
func (r *resolver) value(v ssa.Value, depth int) Values { return r.find(v, depth, 0) }

func (r *resolver) find(v ssa.Value, depth, steps int) Values {
	if steps > 30 {
		return nil
	}
	steps++
	switch v := v.(type) {
	case *ssa.Const:
		if v.Value == nil {
			return Values{0}
		}
		if i := constant.ToInt(v.Value); i.Kind() == constant.Int {
			if n, ok := constant.Int64Val(i); ok {
				return Values{uint32(n)}
			}
			if n, ok := constant.Uint64Val(i); ok {
				return Values{uint32(n)}
			}
		}
	case *ssa.Convert:
		if b, ok := v.X.Type().Underlying().(*types.Basic); ok && b.Info()&types.IsInteger != 0 {
			return r.find(v.X, depth, steps)
		}
	case *ssa.ChangeType:
		return r.find(v.X, depth, steps)
	case *ssa.BinOp:
		return combine(v.Op, r.find(v.X, depth, steps), r.find(v.Y, depth, steps))
	case *ssa.Phi:
		var all Values
		for _, e := range v.Edges {
			if e == v {
				continue
			}
			values := r.find(e, depth, steps+4)
			if values == nil || len(all) > maxValues {
				return nil
			}
			all = append(all, values...)
		}
		return unique(all)
	case *ssa.Parameter:
		f := v.Parent()
		if f != r.chain[depth].in {
			return nil
		}
		if depth+1 == len(r.chain) {
			r.deeper = true
			return nil
		}
		c := r.chain[depth+1].call.Common()
		args := c.Args
		i := slices.Index(f.Params, v)
		if c.IsInvoke() {
			i--
		}
		if i < 0 || i >= len(args) {
			return nil
		}
		return r.find(args[i], depth+1, steps)
	case *ssa.FreeVar:
		return r.captured(v, steps)
	case *ssa.UnOp:
		if v.Op != token.MUL {
			return nil
		}
		switch x := v.X.(type) {
		case *ssa.Global:
			return r.global(x, steps)
		case *ssa.FreeVar:
			return r.captured(x, steps)
		case *ssa.Alloc:
			return r.variable(x, steps)
		}
	}
	return nil
}

// global is what a variable can be that has only constants stored to it. What a function init
// stores comes after what the variable is declared with.
func (r *resolver) global(g *ssa.Global, steps int) Values {
	if r.p.globals[g] || len(r.p.stores[g]) == 0 {
		return nil
	}
	var all, declared Values
	for _, s := range r.p.stores[g] {
		c, ok := s.Val.(*ssa.Const)
		if !ok {
			return nil
		}
		switch v := r.find(c, 0, steps); {
		case s.Parent().Name() == "init" && s.Parent().Synthetic != "":
			declared = v
		case strings.HasPrefix(s.Parent().Name(), "init#"):
			all = append(all, v...)
		default:
			return nil
		}
	}
	if all == nil {
		return declared
	}
	return unique(all)
}

// captured is what a variable of an enclosing function can be, if that is a constant.
func (r *resolver) captured(v *ssa.FreeVar, steps int) Values {
	f := v.Parent()
	i := slices.Index(f.FreeVars, v)
	var all Values
	for _, m := range r.p.closes[f] {
		var values Values
		inner := resolver{p: r.p, chain: []site{{in: m.Parent()}}}
		switch b := m.Bindings[i].(type) {
		case *ssa.Alloc:
			values = inner.variable(b, steps)
		case *ssa.Const:
			values = inner.find(b, 0, steps)
		}
		if values == nil {
			return nil
		}
		all = append(all, values...)
	}
	return unique(all)
}

// variable is what a variable that is captured can be, if only constants are stored to it.
func (r *resolver) variable(a *ssa.Alloc, steps int) Values {
	var all Values
	for _, ref := range *a.Referrers() {
		switch ref := ref.(type) {
		case *ssa.Store:
			c, ok := ref.Val.(*ssa.Const)
			if !ok || ref.Addr != a {
				return nil
			}
			all = append(all, r.find(c, 0, steps)...)
		case *ssa.UnOp, *ssa.MakeClosure, *ssa.DebugRef:
		default:
			return nil
		}
	}
	return unique(all)
}

func unique(v Values) Values {
	slices.Sort(v)
	return slices.Compact(v)
}

func combine(op token.Token, a, b Values) Values {
	if a == nil || b == nil || len(a)*len(b) > maxValues {
		return nil
	}
	var all Values
	for _, x := range a {
		for _, y := range b {
			switch op {
			case token.OR:
				all = append(all, x|y)
			case token.AND:
				all = append(all, x&y)
			case token.AND_NOT:
				all = append(all, x&^y)
			case token.ADD:
				all = append(all, x+y)
			case token.SUB:
				all = append(all, x-y)
			case token.SHL:
				all = append(all, x<<y)
			default:
				return nil
			}
		}
	}
	return unique(all)
}

func pkgOf(f *ssa.Function) string {
	switch {
	case f == nil:
		return ""
	case f.Pkg != nil:
		return f.Pkg.Pkg.Path()
	case f.Origin() != nil && f.Origin() != f:
		return pkgOf(f.Origin())
	case f.Object() != nil && f.Object().Pkg() != nil:
		return f.Object().Pkg().Path()
	case f.Parent() != nil:
		return pkgOf(f.Parent())
	}
	return ""
}
