#include "textflag.h"

// func jump(stack uintptr, p *plan, entry uintptr)
TEXT ·jump(SB), NOSPLIT|NOFRAME, $0-24
	MOV	stack+0(FP), X5
	MOV	p+8(FP), X6
	MOV	entry+16(FP), X7
	ADD	$-48, X5
	MOV	X5, X2
	MOV	X6, 8(X2)
	MOV	X7, 24(X2)
	CALL	·discard(SB)
	MOV	24(X2), X7
	MOV	X2, X5
	ADD	$48, X5
	MOV	X5, X2
	JMP	(X7)
